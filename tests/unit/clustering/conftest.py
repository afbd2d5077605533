import pytest

from tests.unit.clustering.shapes import encode, moving_square, travel, write_shard

WAYS = {"right": (40, 0), "left": (-40, 0), "up": (0, -40), "down": (0, 40)}


@pytest.fixture(scope="session")
def clips() -> dict[str, bytes]:
    """24 encoded clips, six of each direction of travel, every one with its own textures."""
    names = list(WAYS) * 6
    return {
        f"clip-{i:02d}-{way}": encode(moving_square(travel(*WAYS[way]), seed=i))
        for i, way in enumerate(names)
    }


@pytest.fixture(scope="session")
def shards(clips, tmp_path_factory):
    return write_shard(tmp_path_factory.mktemp("shards"), "video", clips)


@pytest.fixture(scope="session")
def damaged(clips, tmp_path_factory):
    """The same clips; the second one is not a video."""
    broken = {key: (b"no video" if i == 1 else data) for i, (key, data) in enumerate(clips.items())}
    return write_shard(tmp_path_factory.mktemp("damaged"), "video", broken)
