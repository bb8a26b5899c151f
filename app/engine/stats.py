"""What the engine counts, for /metrics: its thread writes, any thread reads."""

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Counters since the start, and gauges."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_free_cache_tokens: int = 0
    num_free_lora_columns: int = 0
    num_adapter_loads: int = 0
    num_adapter_evictions: int = 0
    num_adapter_hits: int = 0  # requests that found their adapter in the bank
    num_adapter_host_hits: int = 0  # loads that needed no read from the volume
    num_adapter_host_bytes: int = 0
    adapter_load_seconds: float = 0.0  # the engine's time; reading files is not in it
    adapter_read_seconds: float = 0.0  # the loader thread's time
