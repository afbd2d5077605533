"""Normalisation of patches with CLIP's mean and standard deviation, per channel."""

import torch

from ovtrain.ops.patchify import CLIP_MEAN, CLIP_STD, normalise_patches


def test_each_channel_gets_its_own_mean_and_std():
    patches = torch.arange(12, dtype=torch.uint8).repeat(2, 1) * 20
    found = normalise_patches(patches).view(2, 3, 4)
    for c in range(3):
        expected = (patches.view(2, 3, 4)[:, c] / 255 - CLIP_MEAN[c]) / CLIP_STD[c]
        torch.testing.assert_close(found[:, c], expected)


def test_the_asked_type_comes_out():
    patches = torch.zeros(1, 12, dtype=torch.uint8)
    assert normalise_patches(patches, torch.bfloat16).dtype == torch.bfloat16
