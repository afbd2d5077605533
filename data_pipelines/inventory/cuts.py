"""Scene cuts of a video, by FFmpeg's scene score: the frames that begin a new scene.

The score, 0 to 1, is the mean change of a small picture, lowered by the change of the frame before,
so that steady motion does not count.
"""

from __future__ import annotations

from pathlib import Path

import av
from av.container import InputContainer
from av.error import BlockingIOError as NothingYet
from av.error import EOFError as AtEnd
from av.error import FFmpegError, InvalidDataError
from av.filter import Graph
from av.video.stream import VideoStream

from data_pipelines.inventory.media import MediaFile
from data_pipelines.inventory.probe import video_stream
from ovtrain.schema.errors import MediaError

SHORTEST = 8
"""Frames of the shortest scene."""
WIDTH = 96
"""Pixels to which pictures are reduced first: cuts show, noise does not."""


def scene_cuts(folder: Path, media: MediaFile, threshold: float) -> list[int]:
    """Numbers of the frames that begin a scene, without 0. Damage ends the search: what lies
    behind it is one scene. Raises MediaError where nothing is readable."""
    try:
        with av.open(media.source(folder), "r") as container:
            stream = video_stream(container, media.name)
            return _cuts(container, stream, threshold)
    except FFmpegError as error:
        raise MediaError(media.name, f"unreadable ({error.strerror})") from error


def _cuts(container: InputContainer, stream: VideoStream, threshold: float) -> list[int]:
    graph = _graph(stream, threshold)
    found: list[int] = []
    try:
        for number, frame in enumerate(container.decode(stream)):
            # The filter keeps what it is given: the number of a frame travels as its time.
            frame.pts, frame.time_base = number, stream.time_base
            graph.push(frame)
            found += _shown(graph)
    except InvalidDataError:
        pass
    cuts: list[int] = []
    for number in found:  # of a fast scene the frames behind its first may count, too
        if number - (cuts[-1] if cuts else 0) >= SHORTEST:
            cuts.append(number)
    return cuts


def _shown(graph: Graph) -> list[int]:
    found: list[int] = []
    while True:
        try:
            frame = graph.pull()
        except (NothingYet, AtEnd):
            return found
        assert frame.pts is not None
        found.append(frame.pts)


def _graph(stream: VideoStream, threshold: float) -> Graph:
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(template=stream),
        graph.add("scale", f"{WIDTH}:-2:flags=area"),
        graph.add("select", rf"gt(scene\,{threshold})"),
        graph.add("buffersink"),
    ).configure()
    return graph
