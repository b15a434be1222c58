"""Which pipeline, down to the weights: what a policy must fit."""

from planner.case.noun import Noun


class Component(Noun):
    """One part of a pipeline: its class, the sha256 of its config, and of sampled weights.

    `weights` hashes fixed positions of every tensor, so that a fine-tune is not its base;
    it is None for parts without weights (tokenizers, schedulers).
    """

    class_name: str
    config: str
    weights: str | None = None


class Traits(Noun):
    """What passes ask about a pipeline's structure.

    `denoiser` is the component that is called at every step; `block_classes` its repeated
    blocks, `blocks` how many of them; `skippable` whether diffusers has registered those blocks,
    so that what their stack adds can be kept and added again, and `cacheable` whether diffusers'
    own block caches can as well;
    `extra_channels` how many more the denoiser takes than it returns (an image to begin with);
    `attention` the kinds of attention in the blocks (spatial, cross, temporal);
    `branches` the names given to `cache_context`, in calling order;
    `prompt_arguments` what its `encode_prompt` takes, none where it has no such method.
    """

    denoiser: str
    denoiser_class: str
    block_classes: tuple[str, ...] = ()
    blocks: int = 0
    cacheable: bool = False
    skippable: bool = False
    attention: tuple[str, ...] = ()
    compilable: bool = False
    extra_channels: int = 0
    branches: tuple[str, ...] = ()
    prompt_arguments: tuple[str, ...] = ()


class Model(Noun):
    """A pipeline: label, commit, class, fingerprint of every component, and adapters."""

    id: str
    revision: str | None = None
    pipeline: str
    components: dict[str, Component]
    adapters: tuple[str, ...] = ()
    traits: Traits
