"""What XLA is told in tests: how many devices to simulate, and how hard to optimize."""

import os

AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}
"""`compiler_options` of a `jit` whose rounding is tested: what XLA does unless it is told."""

SIMULATED = "--xla_force_host_platform_device_count="


def simulated(devices: int) -> dict[str, str]:
    """Return the environment of a program that sees so many devices of a CPU.

    The flags of `make test` (see the Makefile), or those of whoever runs the tests, stay.
    """
    given = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(SIMULATED)]
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*given, f"{SIMULATED}{devices}"])}
