"""The state of keys that lie in two processes: summed by an all-reduce, it answers as one process would."""

import subprocess
import sys
from pathlib import Path

RANK = """
import sys
import torch
import torch.distributed as dist
from lineardit.kernels.linear_attention import LinearAttentionState, linear_attention, linear_attention_state

rank, meeting, answer = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
generator = torch.Generator().manual_seed(0)
query, key, value = (torch.randn(2, 3, n, 8, generator=generator) for n in (5, 20, 20))
mine = slice(0, 13) if rank == 0 else slice(13, 20)
state = linear_attention_state(key[:, :, mine], value[:, :, mine])
for part in state:
    dist.all_reduce(part)
found = linear_attention(query, None, None, state=LinearAttentionState(*state))
apart = (found - linear_attention(query, key, value)).abs().max().item()
open(f"{answer}{rank}", "w").write(str(apart))
dist.destroy_process_group()
"""


def test_states_add_up_over_an_all_reduce(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "meeting"), str(tmp_path / "apart")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, complaint
    assert all(float((tmp_path / f"apart{rank}").read_text()) < 1e-5 for rank in range(2))
