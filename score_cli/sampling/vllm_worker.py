"""What runs inside vLLM's worker processes: taking the weights of another policy without a restart, and ending.

vLLM finds this class by its name (`worker_extension_cls`) and adds its methods to each worker.
"""

import hashlib
import os
import select
import threading
from typing import Any

from torch import Tensor

from score_cli.tables.checkpoints import weight_bytes


def tensor_digest(values: Tensor) -> str:
    """sha256 of a tensor's bytes."""
    return hashlib.sha256(weight_bytes(values)).hexdigest()


class PolicyRefresh:
    """Methods of a vLLM worker; `self` is the worker, so nothing here may share a name with its own."""

    def end_with_process(self, process: int) -> None:
        """End this worker when another process has ended, however that came about.

        vLLM stops its workers when its owner exits in order. One that is killed would leave them, and the GPU's memory
        with them, to nobody.
        """
        watched = os.pidfd_open(process)

        def watch() -> None:
            ended = select.poll()
            ended.register(watched, select.POLLIN)
            ended.poll()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

    def load_policy_weights(self, path: str) -> list[str]:
        """Load the weights of a checkpoint of the same architecture in place.

        vLLM's `reload_weights` alone is not enough. Each layer is packed anew when its own weights
        arrive, but a head tied to the embedding has none in the checkpoint. Where the matrix product
        works on a packed copy, as on CPU, such a head would go on with the copy made from the old
        policy: a new body under an old head, which is neither policy, with no error.

        Returns:
            Names of the modules whose packed copies were made anew.
        """
        worker: Any = self
        worker.reload_weights(weights_path=path)
        repacked = []
        for name, module in worker.model_runner.get_model().named_modules():
            # Layers that were repacked on arrival have given their plain weights up; embeddings and heads keep them.
            if hasattr(module, "cpu_linear") and module.weight.numel() > 0:
                module.quant_method.process_weights_after_loading(module)
                repacked.append(name)
        return repacked

    def embedding_digest(self, rows: int, width: int) -> str | None:
        """Digest of the input embedding without vLLM's padding; None where this worker holds a part of one."""
        worker: Any = self
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

        for module in worker.model_runner.get_model().modules():
            if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead):
                weight = module.weight
                if module.tp_size == 1 and weight.shape[0] >= rows and weight.shape[1] == width:
                    return tensor_digest(weight[:rows])
        return None
