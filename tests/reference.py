"""Parameters and operations that others counted, to hold the catalogue against.

Source: each class of diffusers 0.42.1 built on the meta device and counted with torch's
FlopCounterMode, from the released configs; one forward at batch 1, one multiply-add is two.
"""

from typing import Any

DENOISERS: dict[str, tuple[int, float, dict[str, Any]]] = {
    "flux.1-dev": (11_901_408_320, 74.3847, {}),
    "flux.1-schnell": (11_891_178_560, 69.4666, {}),
    "flux.2-dev": (32_223_281_152, 282.5996, {}),
    "flux.2-klein-4b": (3_875_544_576, 34.8202, {}),
    "flux.2-klein-9b": (9_078_581_248, 75.5147, {}),
    "qwen-image": (20_430_401_088, 70.5766, {"height": 1024, "width": 1024, "text_tokens": 128}),
    "sd3.5-large": (8_056_627_520, 31.1211, {}),
    "sd3.5-medium": (2_243_171_520, 11.2496, {}),
    "sd3-medium": (2_028_328_000, 8.9043, {}),
    "sdxl": (2_567_463_684, 6.7612, {}),
    "sd1.5": (859_520_964, 0.8033, {}),
    "sd2.1": (865_910_724, 2.1491, {}),
    "pixart-sigma": (610_856_096, 6.6336, {}),
    "pixart-alpha": (611_349_152, 6.5095, {}),
    "sana-1.6b": (1_604_462_752, 2.9667, {}),
    "sana-0.6b": (591_747_872, 1.1215, {}),
    "z-image-turbo": (6_154_908_736, 56.5796, {}),
    "z-image": (6_154_908_736, 56.5796, {}),
    "wan2.1-t2v-1.3b": (1_418_996_800, 283.0018, {}),
    "wan2.1-t2v-14b": (14_288_491_584, 6523.4366, {}),
    "wan2.1-i2v-14b": (16_394_878_784, 6540.4971, {}),
    "wan2.2-t2v-a14b": (14_288_491_584, 6523.4366, {}),
    "wan2.2-i2v-a14b": (14_288_901_184, 6523.4985, {}),
    "wan2.2-ti2v-5b": (4_999_787_712, 517.0078, {}),
    "hunyuanvideo": (12_821_012_544, 12068.5922, {}),
    "hunyuanvideo-1.5": (8_326_608_160, 1441.7877, {}),
    "ltx-video-2b": (1_923_385_472, 37.1290, {}),
    "ltx-video-13b": (13_042_569_344, 211.9968, {}),
    "cogvideox-2b": (1_693_783_872, 119.9973, {}),
    "cogvideox-5b": (5_570_283_072, 332.1977, {}),
    "mochi-1": (10_027_677_744, 1667.5059, {}),
    "cogvideox1.5-5b": (5_570_700_000, 1479.2, {}),
}
"""Entry → parameters, TFLOPs a forward, and the shape where it is not the entry's default."""

OTHER_SHAPES: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("qwen-image", 131.6821, {"height": 1328, "width": 1328, "text_tokens": 128}),
    ("qwen-image", 111.7, {"height": 1664, "width": 928, "text_tokens": 128}),
    ("flux.1-dev", 71.9, {"height": 1008, "width": 1008}),
    ("flux.1-dev", 21.5, {"height": 512, "width": 512}),
    ("sdxl", 35.9, {"height": 2048, "width": 2048}),
    ("pixart-alpha", 623.4, {"height": 4096, "width": 4096}),
    ("hunyuanvideo", 4285.3, {"height": 544, "width": 960}),
    ("hunyuanvideo-1.5", 6324.7110, {"height": 720, "width": 1280}),
    ("wan2.1-t2v-14b", 1678.4, {"height": 480, "width": 832}),
    ("cogvideox1.5-5b", 4626.0, {"frames": 161}),
    ("mochi-1", 602.9907, {"frames": 85}),
)
"""Entry, TFLOPs a forward, shape: sizes that are nobody's default."""

PARTS: dict[str, int] = {
    "t5-v1.1-xxl": 4_762_310_656,
    "umt5-xxl": 5_680_910_336,
    "clip-l": 123_060_480,
    "clip-bigg": 694_659_840,
    "byt5-small": 217_657_472,
    "llama-3-8b": 7_505_186_816,
    "gemma-2-2b": 2_614_341_888,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen2.5-vl-7b-text": 7_070_619_136,
    "clip-vit-h-vision": 630_766_080,
    "vae-kl-4": 83_653_863,
    "vae-kl-16": 83_819_683,
    "vae-flux2": 84_046_115,
    "vae-qwen-image": 126_892_531,
    "vae-dc-sana": 312_250_275,
    "vae-wan": 126_892_531,
    "vae-wan-2.2-5b": 704_688_668,
    "vae-hunyuanvideo": 246_478_803,
    "vae-hunyuanvideo-1.5": 1_260_634_115,
    "vae-ltx-0.9.0": 419_193_649,
    "vae-ltx-0.9.7": 1_246_913_522,
    "vae-cogvideox": 215_583_907,
    "vae-mochi": 459_748_611,
}
"""Shared part → parameters."""

DECODES: dict[str, float] = {
    "flux.1-dev": 10.4722,
    "flux.2-klein-4b": 10.4747,
    "qwen-image": 20.1216,
    "sdxl": 10.4704,
    "sana-1.6b": 8.3686,
    "ltx-video-2b": 50.5249,
    "ltx-video-13b": 73.2477,
    "hunyuanvideo-1.5": 1240.0326,
    "mochi-1": 1080.8048,
    "hunyuanvideo": 2999.9722,
}
"""Entry → TFLOPs of one untiled decode at its default shape; the quick ones."""

PUBLISHED = (
    "CogVideoX-2b", "CogVideoX-5b", "CogVideoX1.5-5B", "FLUX.1-dev", "FLUX.2-dev",
    "FLUX.2-klein-4B", "FLUX.2-klein-base-4B", "HunyuanVideo", "HunyuanVideo-1.5",
    "LTX-Video-13B", "Mochi-1", "PixArt-Alpha", "PixArt-Sigma", "Qwen-Image", "SD1.5", "SD2.1",
    "SD3-medium", "SD3.5-large", "SDXL", "Sana-0.6B", "Sana-1.6B", "Wan2.1-I2V-14B",
    "Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B", "Wan2.2-I2V-A14B", "Wan2.2-T2V-A14B", "Wan2.2-TI2V-5B",
    "Z-Image-Turbo",
)
"""Names of models in the table of published measurements that the catalogue must know."""
