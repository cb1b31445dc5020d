import time

import pytest
import torch

from moe_asr.measure.rtf import TimedBatch, machine, speed_receipt, timed


def test_the_factor_pools_seconds_and_the_quartiles_are_of_batches() -> None:
    times = [TimedBatch(1.0, 2.0, 10.0), TimedBatch(1.0, 1.5, 5.0), TimedBatch(3.0, 3.0, 10.0)]
    receipt = speed_receipt(times, batch=4, warm_up=2)
    assert receipt.rtf == pytest.approx(5 / 25)
    assert receipt.rtf_quartiles == pytest.approx((0.15, 0.2, 0.25))
    assert (receipt.wall_seconds, receipt.cpu_seconds, receipt.audio_seconds) == (5.0, 6.5, 25.0)
    assert (receipt.batches, receipt.batch, receipt.warm_up, receipt.device) == (3, 4, 2, "cpu")
    assert receipt.threads == torch.get_num_threads()
    assert receipt.torch_version == torch.__version__


def test_work_is_timed_and_its_result_returned() -> None:
    def work() -> int:
        start = time.process_time()
        while time.process_time() - start < 0.02:
            pass
        return 7

    result, batch = timed(work, audio_seconds=2.0)
    assert result == 7
    assert batch.wall_seconds >= 0.02
    assert batch.cpu_seconds >= 0.02
    assert batch.audio_seconds == 2.0


def test_no_factor_without_audio() -> None:
    with pytest.raises(ValueError, match="audio"):
        speed_receipt([], batch=1, warm_up=0)
    with pytest.raises(ValueError, match="audio"):
        speed_receipt([TimedBatch(1.0, 1.0, 0.0)], batch=1, warm_up=0)


def test_the_machine_is_described_without_its_name() -> None:
    import platform

    assert "cores" in machine()
    assert platform.node() not in machine()
    assert "/" not in machine().replace("w/", "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_work_is_waited_for() -> None:
    x = torch.randn(8192, 8192, device="cuda")
    timed(lambda: x @ x, 1.0, "cuda")
    _, batch = timed(lambda: [x @ x for _ in range(20)], 1.0, "cuda")
    start = time.perf_counter()
    torch.cuda.synchronize()
    assert time.perf_counter() - start < batch.wall_seconds / 10
    assert torch.cuda.get_device_name() in machine("cuda")
