"""Data and tensor ranks as DeepSpeed asks for them: Megatron-LM's names."""

from __future__ import annotations

import torch.distributed as dist

from ovtrain.distributed.mesh import Mesh, group_of_one


class Mpu:
    """Collective to make. Its own names say model parallel where we say tensor."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        alone = group_of_one(mesh.world) if mesh.data.group is None else None
        self._data = mesh.data.group or alone

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        return self._data

    def get_data_parallel_rank(self) -> int:
        return self._mesh.data.rank

    def get_data_parallel_world_size(self) -> int:
        return self._mesh.data.size

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        return self._mesh.tensor.group

    def get_model_parallel_rank(self) -> int:
        return self._mesh.tensor.rank

    def get_model_parallel_world_size(self) -> int:
        return self._mesh.tensor.size

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
