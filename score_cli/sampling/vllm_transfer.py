"""vLLM's weight transfer as it is used here: both ends of one broadcast, of NCCL's kind and of gloo's.

vLLM brings NCCL's. Where engines run on the CPU the same steps go over gloo: one weight after another, as bytes.
Workers of vLLM import this module, as the class that extends them (`worker_extension_cls`), and the sender does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.distributed.utils import stateless_init_torch_distributed_process_group  # noqa: TID253
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource  # noqa: TID253
from vllm.distributed.weight_transfer.factory import (  # noqa: TID253
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo  # noqa: TID253
from vllm.distributed.weight_transfer.nccl_engine import (  # noqa: TID253
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from score_cli.sampling.vllm_weights import Place, read_weights
from score_cli.sampling.vllm_worker import PolicyRefresh, loaded

# Of a broadcast over gloo, and of each meeting; whoever asks for them ends the processes before.
_GLOO_PATIENCE = timedelta(minutes=20)


class PolicyReceiver(PolicyRefresh):
    """Methods of a vLLM worker that can be sent a policy."""

    def receive_policy_weights(self, coming: Mapping[str, Any]) -> dict[str, str]:
        """Load weights of the same architecture in place, as they come.

        Returns, Raises:
            As `loaded`.
        """
        worker: Any = self

        def load() -> None:
            worker.start_weight_update()
            worker.update_weights(dict(coming))
            worker.finish_weight_update()

        return loaded(worker, load)


class GlooEngine(NCCLWeightTransferEngine):  # type: ignore[misc]
    """A worker's end, over gloo."""

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Meet the sender and the other workers."""
        own = self.parallel_config.data_parallel_index * self.parallel_config.world_size + self.parallel_config.rank
        self.model_update_group = _meet(init_info, init_info.rank_offset + own)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take every weight as it comes; vLLM's own waits for a GPU afterwards."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Take every weight as it comes."""
        self.model.load_weights(self._arriving(update_info))

    def _arriving(self, info: NCCLWeightTransferUpdateInfo) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            _broadcast(self.model_update_group, weight)
            yield name, weight

    def shutdown(self) -> None:
        """Leave the group."""
        self.model_update_group = None


@dataclass
class GlooTrainerInitInfo(NCCLTrainerInitInfo):  # type: ignore[misc]
    """What the trainer's end over gloo is told."""

    backend: ClassVar[str] = "gloo"


class GlooTrainerEngine(NCCLTrainerWeightTransferEngine):  # type: ignore[misc]
    """The trainer's end, over gloo."""

    @classmethod
    def trainer_init(cls, init_info: GlooTrainerInitInfo, *, client: Any, source: Any = None) -> "GlooTrainerEngine":
        """Meet the workers."""
        engine = cls(client=client, source=source)
        engine.model_update_group = _meet(init_info, 0)
        return engine

    def _broadcast(self, source: WeightSource, meta: list[ParamMeta]) -> None:
        for _, weight in self._checked_iter(source, meta):
            _broadcast(self.model_update_group, weight)

    def shutdown(self) -> None:
        """Leave the group."""
        self.model_update_group = None


class Sending:
    """The sender's place in a group, and what it sends from there."""

    def __init__(self, meeting: Mapping[str, Any], *, cuda: bool) -> None:
        """Meet the workers, which have to be told to come at the same time.

        Args:
            meeting: where, and how many.
        """
        kind = NCCLTrainerInitInfo if cuda else GlooTrainerInitInfo
        self._weights = _SharedWeights("cuda" if cuda else "cpu")
        self._engine = WeightTransferTrainerFactory.trainer_init(
            kind(rank=0, **meeting), client=_ToldApart(), source=self._weights
        )

    def send(self, path: Path, places: Sequence[Place]) -> None:
        """Send the weights that lie in shared memory; the workers have to be told to take them at the same time."""
        self._weights.path, self._weights.places = path, places
        self._engine.send_weights()


class _SharedWeights(WeightSource):  # type: ignore[misc]
    """Weights that lie in shared memory."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.path = Path()
        self.places: Sequence[Place] = ()

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape, _ in self.places]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in read_weights(self.path, self.places):
            yield name, weight.to(self._device)


class _ToldApart:
    """vLLM's sender tells its workers what to do through this; here whoever watches over both does."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: Any) -> None:
        pass

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass


def _meet(info: NCCLWeightTransferInitInfo | NCCLTrainerInitInfo, rank: int) -> Any:
    return stateless_init_torch_distributed_process_group(
        info.master_address, info.master_port, rank, info.world_size, "gloo", timeout=_GLOO_PATIENCE
    )


def _broadcast(group: Any, weight: Tensor) -> None:
    """Send a weight from the sender to everybody, in place, whatever its type."""
    group.broadcast(weight.view(-1).view(torch.uint8), 0).wait()


WeightTransferEngineFactory.register_engine("gloo", GlooEngine)
WeightTransferTrainerFactory.register_engine("gloo", GlooTrainerEngine)
