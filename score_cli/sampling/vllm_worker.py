"""What runs inside vLLM's worker processes: taking the weights of another policy without a restart.

vLLM finds this class by its name (`worker_extension_cls`) and adds its methods to each worker.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from score_cli.sampling.vllm_weights import Held, Place, noted, read_weights, tensor_digest


class PolicyRefresh:
    """Methods of a vLLM worker; `self` is the worker, so nothing here may share a name with its own."""

    def load_policy_weights(self, path: str, places: list[Any]) -> dict[str, str]:
        """Load weights of the same architecture in place, out of the trainer's memory (`vllm_weights.shared_weights`).

        Returns, Raises:
            As `loaded`.
        """
        worker: Any = self
        weights = read_weights(Path(path), [Place(*place) for place in places])
        return loaded(worker, lambda: worker.reload_weights(weights_iterator=weights))

    def held_weights(self) -> dict[str, Held]:
        """The embeddings, without vLLM's padding, and all vectors (norms, biases) in this worker's memory.

        Matrices are left out: a device may hold them transposed, merged or packed.
        """
        worker: Any = self
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        held = {}
        for name, module in worker.model_runner.get_model().named_modules():
            for own, weight in module.named_parameters(recurse=False):
                if isinstance(module, VocabParallelEmbedding) and module.tp_size == 1:
                    weight = weight[: module.org_vocab_size]
                elif weight.dim() != 1:
                    continue
                dtype = str(weight.dtype).removeprefix("torch.")
                held[f"{name}.{own}"] = Held(dtype, list(weight.shape), tensor_digest(weight))
        return held


def loaded(worker: Any, load: Callable[[], None]) -> dict[str, str]:
    """Let vLLM load all weights of a policy in place, and see that it has.

    What vLLM does alone is not enough. Each layer is packed anew when its own weights
    arrive, but a head tied to the embedding has none in the checkpoint. Where the matrix product
    works on a packed copy, as on CPU, such a head would go on with the copy made from the old
    policy: a new body under an old head, which is neither policy, with no error.

    Args:
        load: hands the weights to the model's `load_weights`.
    Returns:
        The digest of each weight that vLLM's loader was given.
    Raises:
        RuntimeError: a parameter of the model took none of them, which vLLM itself only warns of.
    """
    model = worker.model_runner.get_model()
    digests: dict[str, str] = {}
    missing = {name for name, _ in model.named_parameters()}

    def load_weights(weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        taken: set[str] = type(model).load_weights(model, noted(weights, digests))
        missing.difference_update(taken)
        return taken

    model.load_weights = load_weights
    try:
        load()
    finally:
        del model.load_weights
    if missing:
        raise RuntimeError(f"no weight for {', '.join(sorted(missing)[:3])} ({len(missing)} in all)")
    for module in model.modules():
        # Layers that were repacked on arrival have given their plain weights up; embeddings and heads keep them.
        if hasattr(module, "cpu_linear") and module.weight.numel() > 0:
            module.quant_method.process_weights_after_loading(module)
    return digests
