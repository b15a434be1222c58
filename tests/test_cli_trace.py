"""`planner trace`: what it prints for programs and for people, and how it refuses."""

import json

import pytest

from planner.cli.main import run


def test_the_document_of_a_model_has_its_published_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["trace", "qwen-image", "--height", "1328", "--width", "1328", "--steps", "50"]
    assert run([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total_tflops"] == pytest.approx(12_917.56, rel=0.01)
    assert found["forwards"] == 100
    assert found["tflops_per_forward"] == pytest.approx(129.18, rel=0.01)
    assert found["decode_tflops"] == pytest.approx(20.12, rel=0.01)
    assert 0 < found["encode_tflops"] < 10 and 0.2 < found["attention_share"] < 0.3
    assert found["parameters"]["transformer"] == 20_430_401_088
    denoise = found["phases"][1]
    assert denoise["calls"] == 50 and denoise["peak_bytes"] > 0
    for table in (denoise["kinds"], denoise["groups"]):
        assert sum(row["tflops"] for row in table.values()) == pytest.approx(denoise["tflops"])
    assert set(denoise["kinds"]) == {"linear", "attention", "normalisation", "elementwise"}
    assert "transformer_blocks.*.attn" in denoise["groups"]


def test_people_get_totals_and_three_tables(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--steps", "4", "--batch", "2", "--dtype", "float16"]
    assert run(["trace", "sd1.5", *asked]) == 0
    shown = capsys.readouterr().out
    title = "Stable Diffusion 1.5, 512×512, 4 steps, 77 text tokens, batch 2, float16"
    assert shown.startswith(f"{title}\n")
    assert "in 8 forwards of 1.607" in shown
    for heading in ("phase", "denoiser, one call", "component"):
        assert f"\n{heading} " in shown
    assert "unet" in shown and "0.8595 B" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["trace", "flux.1"], 2, "planner: no model is called 'flux.1': did you mean flux."),
        (["trace", "flux.1-dev", "--height", "1000"], 2, "the nearest that it takes is 992"),
        (["trace", "flux.1-dev", "--hight", "1000"], 2, "did you mean --height?"),
    ],
)
def test_a_refusal_is_one_sentence(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
