"""Pictures of the gate."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from core_agent import SACRAD, CoRe
from core_agent.runs.gating import GatingCallback, gating_pictures
from tests.fakes import BOTH, IMAGE, FakeEnv, policy_name, tiny


def make_model(algorithm: type, space: spaces.Space = IMAGE, gating: bool = True, **kwargs):
    sizes = tiny(algorithm)
    policy_kwargs = dict(sizes["policy_kwargs"], gating=gating)
    arguments = {**sizes, **kwargs, "policy_kwargs": policy_kwargs}
    return algorithm(policy_name(space), FakeEnv(space), **arguments)


def gate(model) -> torch.nn.Module:
    (encoder,) = model.policy.observation_encoder.image_encoders.values()
    return encoder.gate


@pytest.mark.parametrize("algorithm", [CoRe, SACRAD])
def test_the_picture_is_image_mask_and_product(algorithm):
    model = make_model(algorithm)
    # A last layer of zeros and a bias of log 3 make the mask 3/4 everywhere.
    with torch.no_grad():
        gate(model).convs[-1].weight.zero_()
        gate(model).convs[-1].bias.fill_(np.log(3.0))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = gating_pictures(model.policy, image)["observation"]
    assert picture.shape == (7, 21, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[:, :7], image[:7, :7])  # the central crop of 8 pixels to 7
    assert (picture[:, 7:14] == 191).all()  # 0.75 * 255, rounded
    product = 0.75 * image[:7, :7]
    assert np.abs(picture[:, 14:].astype(float) - product).max() <= 0.51


def test_grey_images_and_dicts_have_pictures():
    grey = spaces.Box(0, 255, (9, 12, 1), np.uint8)
    space = spaces.Dict({"left": IMAGE, "right": grey, "speed": BOTH["vector"]})
    pictures = gating_pictures(make_model(CoRe, space).policy, space.sample())
    assert {key: picture.shape for key, picture in pictures.items()} == {
        "left": (7, 21, 3),
        "right": (8, 30, 3),
    }


def test_an_agent_without_a_gate_says_how_to_get_one():
    model = make_model(CoRe, gating=False)
    with pytest.raises(ValueError, match=r"policy must have gates, got 'none'; pass policy_kwargs"):
        gating_pictures(model.policy, IMAGE.sample())


@pytest.mark.parametrize("algorithm", [CoRe, SACRAD])
def test_tensorboard_shows_the_picture_now_and_then(algorithm, tmp_path):
    model = make_model(algorithm, tensorboard_log=str(tmp_path))
    model.learn(20, callback=GatingCallback(every=10))
    model.logger.close()
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    shown = events.Images("gating/observation")
    assert [event.step for event in shown] == [0, 10, 20]
    picture = np.asarray(Image.open(io.BytesIO(shown[-1].encoded_image_string)))
    assert picture.shape == (7, 21, 3)
    assert np.array_equal(picture[:, 7:14, 0], picture[:, 7:14, 1])  # the mask is grey
