"""vLLM's process with one more request: ``plant`` a fault in the real engine, or take it out."""

from rlvr.rollout import vllm_process


class FaultyService(vllm_process.EngineService):
    """The service, whose engine can be told to do something wrong."""

    def on_plant(self, fault):
        """Plant ``fault``; None takes all of them out."""
        for name in ("reset_prefix_cache", "collective_rpc"):
            vars(self.llm).pop(name, None)
        if fault is not None:
            getattr(self, f"plant_{fault}")()
        return {}

    def plant_cache_kept(self):
        self.llm.reset_prefix_cache = lambda *_, **__: True

    def plant_no_reload(self):
        whole = self.llm.collective_rpc
        skipped = ("note_weights", "reload_weights")

        def rpc(method, *arguments, **more):
            return [None] if method in skipped else whole(method, *arguments, **more)

        self.llm.collective_rpc = rpc


if __name__ == "__main__":
    vllm_process.EngineService = FaultyService
    vllm_process.main()
