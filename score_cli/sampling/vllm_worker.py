"""What runs inside vLLM's worker processes: taking the weights of another policy without a restart.

vLLM finds this class by its name (`worker_extension_cls`) and adds its methods to each worker.
"""

from typing import Any


class PolicyRefresh:
    """Methods of a vLLM worker; `self` is the worker, so nothing here may share a name with its own."""

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
