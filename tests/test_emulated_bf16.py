"""`precision = "auto"` on a CPU that only emulates bfloat16, which oneDNN plays when it is told how much CPU to see."""

import json
import os
import platform
import subprocess
import sys

import pytest

PROBE = """
import json, torch
torch.set_num_threads(1)
import contestants
from distilkit.training.precision import choose
images = contestants.data(32)
learner = contestants.learner_of(contestants.recipe_of("baseline"), images).to(memory_format=torch.channels_last)
split = images.splits["train"]
chosen, seconds = choose(learner, split.images[:], split.labels)
claimed = torch.ops.mkldnn._is_mkldnn_bf16_supported()
print(json.dumps([chosen, seconds, claimed]))
"""


def probe(isa: str) -> tuple[str, dict[str, float], bool]:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        (sys.executable, "-c", PROBE), env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    chosen, seconds, claimed = json.loads(done.stdout)
    return chosen, seconds, claimed


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="oneDNN is told so there alone")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_a_cpu_without_native_bf16_trains_in_fp32_whatever_torch_claims(isa: str):
    chosen, seconds, claimed = probe(isa)
    if isa == "AVX512_CORE" and not claimed:
        pytest.skip("this CPU has no AVX-512: the same as AVX2")
    assert seconds["bf16"] > 1.2 * seconds["fp32"], "oneDNN did not emulate, so this test tested nothing"
    assert chosen == "fp32"
