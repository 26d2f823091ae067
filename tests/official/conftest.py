"""The official-size model for the golden comparisons: about 6 GB, built once a run."""

from __future__ import annotations

import pytest
import torch

from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from anytext2.model.pseudo_weights import fill_with_pseudo_weights
from anytext2.model.weights import official_state_dict


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/official/" in item.path.as_posix():
            item.add_marker(pytest.mark.official)


@pytest.fixture(scope="session")
def official_model() -> AnyText2:
    """AnyText2 v2.0 in float32, filled by name (variant 'strong'), in eval mode, without gradients."""
    torch.manual_seed(0)
    model = build_model(load_model_config("sd15"), "meta").to_empty(device="cpu").requires_grad_(False)
    fill_with_pseudo_weights(official_state_dict(model))
    return model
