import pytest

from ovtrain.config.cluster import ClusterConfig


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clusters": 4, "top": 10}, "top=10 exceeds clusters=4"),
        ({"clusters": 20, "coarse": 21}, "coarse=21 exceeds clusters=20"),
        ({"clusters": 10_001, "start": "kmeans++"}, "start=random above 10000"),
        ({"coarse": 10, "restarts": 2}, "restarts=2 is for flat k-means"),
        ({"largest": 0.5}, "largest=0.5 must be above 1"),
        ({"recall": 1.5}, "recall=1.5"),
        ({"engine": "abacus"}, "engine=abacus"),
        ({"bad": "ignore"}, "bad=ignore"),
        ({"search": "guess"}, "search=guess"),
        ({"memory_gib": 0}, "memory_gib"),
        ({"center_shards": -1}, "center_shards"),
        ({"teacher": "clip"}, "needs teacher_dir"),
    ],
)
def test_a_wrong_setting_is_one_problem_that_names_it(settings, said):
    (problem,) = ClusterConfig(**settings).problems()
    assert said in problem


def test_the_defaults_are_sound():
    assert ClusterConfig().problems() == []
