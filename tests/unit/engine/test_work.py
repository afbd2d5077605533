"""What a batch is counted as."""

from dataclasses import replace
from pathlib import Path

import pytest

from ovtrain.costs.encoder import training_flops
from ovtrain.data.batch import PackedBatch
from ovtrain.data.loader import Loader
from ovtrain.engine.work import work_of
from tests.helpers.training import typed_config, world


def test_work_is_that_of_each_sample_and_windows_make_it_less(setup_folder: Path):
    config = typed_config(setup_folder)
    loader = Loader(config, world())
    (micro,) = next(loader).micro
    loader.close()
    model = config.model
    found = work_of(micro, model)
    lengths = micro.cu_seqlens.diff().tolist()
    assert (found.samples, found.tokens) == (8, sum(lengths))
    whole = sum(training_flops(model.size, n, model.patch) for n in lengths)
    assert found.flops == pytest.approx(whole)
    windowed = replace(model, window_frames=1, window_layers=(0,))
    assert work_of(micro, windowed).flops < whole


def test_a_placeholder_is_no_sample(setup_folder: Path):
    loader = Loader(typed_config(setup_folder), world())
    (micro,) = next(loader).micro
    loader.close()
    key = micro.key.clone()
    key[0] = 0
    assert work_of(PackedBatch(**(vars(micro) | {"key": key})), loader.config.model).samples == 7
