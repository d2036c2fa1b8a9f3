"""Training on pictures: resume after kill -9 to the bit, two processes as one, budgets, and messages."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from nablanets import GradientResidual, fit
from nablanets.errors import InvalidInputError, ModelFileError, ShapeError
from nablanets.fitting import Schedule
from nablanets_studies.images.training import Stored, Ticket, TrainSettings, train
from nablanets_studies.images.training.seeds import derived_seed

SCRIPT = Path(__file__).parent / "train_pictures.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def small_net() -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    stem = nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(stem, GradientResidual(block), nn.Dropout(0.1), nn.Flatten(), nn.Linear(4 * 36, 3))


def small_data(augment: bool = True) -> Stored:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(50, 1, 6, 6, generator=generator), torch.randint(0, 3, (50,), generator=generator)
    return Stored(x, y, (lambda x, y, u: (x + 0.1 * u[:, :, None, None], y)) if augment else None, draws=1)


SETTINGS = TrainSettings(epochs=2, batch_size=10, learning_rate=0.01, ema=0.9, channels_last=True, checkpoint_every=3)
LOSS = nn.functional.cross_entropy


def run(net: nn.Module, **changes: object) -> tuple[dict[str, torch.Tensor], object]:
    options = {k: changes.pop(k) for k in ("checkpoint", "validate", "report") if k in changes}
    result = train(net, small_data(), LOSS, settings=replace(SETTINGS, **changes), **options)
    return net.state_dict(), result


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, optimizer):
    changes = {
        "optimizer": optimizer,
        "warmup": 0.5,
        "clip_norm": 0.3,
        "validate": lambda net: float(net[0].bias.sum()),
    }
    whole, result = run(small_net(), **changes)
    rows = []

    def stop(row):
        rows.append(row)
        if row.step == 8:  # the last checkpoint is of step 6, between two validations
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small_net(), **changes, checkpoint=tmp_path / "c", report=stop)
    assert (tmp_path / "c").exists()
    torch.manual_seed(99)
    resumed, again = run(small_net(), **changes, checkpoint=tmp_path / "c")
    assert same(whole, resumed)
    assert [row.step for row in again.history] == [row.step for row in result.history]
    assert [row[2:] for row in again.history[1:]] == [row[2:] for row in result.history[1:]]
    finished, _ = run(small_net(), **changes, checkpoint=tmp_path / "c")
    assert same(whole, finished)


def test_accumulated_parts_are_one_batch():
    nets = [small_net().double() for _ in range(2)]
    for net, parts in zip(nets, (1, 5), strict=True):
        net[2].p = 0.0
        run(net, accumulate=parts, precision="64-true", clip_norm=0.5)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*(n.parameters() for n in nets), strict=True))
    assert not torch.allclose(nets[0][0].weight, small_net().double()[0].weight, atol=1e-3)


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)
    return nn.Sequential(*layers).double()


def by_hand(net: nn.Module, settings: TrainSettings, steps: int) -> list[torch.Tensor]:
    """The weights at the end, from the documentation: batches by ticket, groups, schedule, clipping, average."""
    source = small_data()
    matrices, vectors = ([p for p in net.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    schedule = Schedule(settings.learning_rate, settings.warmup)
    average = []
    for step in range(steps):
        x, y = source.batch(Ticket(settings.seed, step, settings.batch_size, 0, settings.batch_size))
        optimizer.zero_grad()
        LOSS(net(x.double()), y).backward()
        if settings.clip_norm is not None:
            norm = torch.stack([p.grad.square().sum() for p in net.parameters()]).sum().sqrt()
            for p in net.parameters():
                p.grad *= min(1.0, settings.clip_norm / float(norm))
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step / steps)
        optimizer.step()
        weights = [p.detach().clone() for p in net.parameters()]
        decay = 0.0 if settings.ema is None or step == 0 else min(settings.ema, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * w for a, w in zip(average or weights, weights, strict=True)]
    return average


@pytest.mark.parametrize(
    "changes",
    [{}, {"clip_norm": 0.1}, {"weight_decay": 0.5}, {"warmup": 0.4}, {"ema": 0.5}, {"ema": 0.2}, {"seed": 3}],
    ids=["plain", "clip_norm", "weight_decay", "warmup", "average", "short average", "seed"],
)
def test_training_does_what_its_documentation_says(changes):
    settings = TrainSettings(epochs=4, batch_size=10, learning_rate=0.01, precision="64-true")
    settings = replace(settings, **changes)
    expected = by_hand(plain_net(), settings, steps=20)
    net = plain_net()
    train(net, small_data(), LOSS, settings=settings)
    for found, wanted in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)  # torch divides by the norm plus 1e-6


def test_every_step_takes_the_learning_rate_of_the_schedule():
    _, result = run(small_net(), epochs=4, warmup=0.25, validate_every=1)
    expected = [Schedule(0.01, 0.25).at(k / 20) for k in range(20)]
    assert [row.learning_rate for row in result.history] == [None, *expected]
    assert max(expected) == 0.01
    assert all(row.damping is None for row in result.history)


def test_seeds_are_those_of_splitmix64_and_differ_by_seed_step_and_process():
    assert derived_seed(0, 1234567) == 6457827717110365317 >> 32
    assert derived_seed(0, 0, 5) == derived_seed(derived_seed(0, 0), 5)
    places = [(seed, step, rank) for seed in range(5) for step in range(-50, 50) for rank in range(4)]
    assert len({derived_seed(*place) for place in places}) == len(places)
    assert derived_seed(7) == 7


def test_dropout_depends_on_seed_and_step_alone():
    """The same batch at every step: the masks differ from step to step, and are the same from run to run."""

    def masks(callers_seed):
        torch.manual_seed(callers_seed)
        net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3))
        seen = []
        net[1].register_forward_hook(lambda module, args, output: seen.append(output.detach() != 0))
        x = torch.ones(10, 1, 6, 6)
        train(net, Stored(x, torch.zeros(10, dtype=torch.long)), LOSS, settings=TrainSettings(epochs=3, batch_size=10))
        return seen

    first, second = masks(0), masks(1)
    assert len(first) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_the_seed_decides_and_the_callers_generator_does_not_move():
    first, _ = run(small_net(), seed=1)
    torch.manual_seed(5)
    second, _ = run(small_net(), seed=1)
    third, _ = run(small_net(), seed=2)
    assert same(first, second)
    assert not same(first, third)
    net, state = small_net(), torch.get_rng_state()
    run(net)
    assert torch.equal(state, torch.get_rng_state())


def test_validation_sees_the_average_which_is_returned():
    seen = []

    def validate(net):
        assert not net.training
        assert not torch.is_grad_enabled()
        seen.append([p.clone() for p in net.parameters()])
        return len(seen)

    net = small_net()
    _, result = run(net, validate=validate, validate_every=4)
    assert [row.step for row in result.history] == [0, 4, 8, 10]
    assert [row.validation_error for row in result.history] == [1, 2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(seen[-1], net.parameters(), strict=True))
    assert net.training


def test_parts_of_a_batch_are_the_batch():
    source = small_data()
    whole = source.batch(Ticket(3, 7, 12, 0, 12))
    parts = [source.batch(Ticket(3, 7, 12, k, k + 4)) for k in (0, 4, 8)]
    assert all(torch.equal(torch.cat(p), w) for p, w in zip(zip(*parts, strict=True), whole, strict=True))
    assert not torch.equal(source.batch(Ticket(3, 8, 12, 0, 12))[1], whole[1])


def test_every_epoch_has_each_sample_once_in_an_order_of_its_own():
    epochs = [Ticket(0, step, 20, 0, 20).indices(20).tolist() for step in range(4)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_a_budget_of_time_ends_the_run_and_drives_the_rate():
    _, result = run(small_net(), epochs=None, seconds=0.3, validate_every=5)
    assert 0.3 <= result.seconds < 3
    first, *later = [row.learning_rate for row in result.history]
    assert first is None
    assert SETTINGS.learning_rate > later[0]
    assert later == sorted(later, reverse=True)
    assert 0 < later[-1] < 0.1 * SETTINGS.learning_rate


def test_bfloat16_trains():
    x = torch.randn(200, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0].sum(dim=(1, 2)) > 0).long()
    net = small_net()
    settings = TrainSettings(epochs=20, batch_size=50, learning_rate=0.01, precision="bf16-mixed", channels_last=True)
    train(net, Stored(x, y), LOSS, settings=settings)
    assert net[0].weight.dtype == torch.float32
    assert float((net.eval()(x).argmax(dim=1) == y).float().mean()) > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, "expected a limit"),
        ({"epochs": math.nan}, "expected epochs to be positive"),
        ({"learning_rate": -1.0}, "positive learning_rate"),
        ({"ema": 1.0}, "ema between 0 and 1"),
        ({"optimizer": "sdg"}, "'sgd'"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"accumulate": 3}, "multiple of 3"),
        ({"learning_rate": 1e30, "optimizer": "sgd", "ema": None}, "not finite at step"),
    ],
)
def test_messages(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        run(small_net(), **changes)


def test_data_that_do_not_fit():
    with pytest.raises(ShapeError, match="as many targets"):
        Stored(torch.zeros(3, 1), torch.zeros(2))
    with pytest.raises(InvalidInputError, match="draws"):
        Stored(torch.zeros(3, 1), torch.zeros(3), lambda x, y, u: (x, y))


def test_checkpoints_of_other_runs_and_damaged_ones(tmp_path):
    file = tmp_path / "c"
    run(small_net(), checkpoint=file)
    for changes in ({"learning_rate": 0.02}, {"label": "other data"}):
        with pytest.raises(ModelFileError, match="other settings, data or network"):
            run(small_net(), checkpoint=file, **changes)
    with pytest.raises(ModelFileError, match="kind: pictures there, fit here"):
        fit(nn.Linear(2, 2), torch.rand(9, 2), torch.rand(9, 2), steps=1, progress=False, checkpoint=file)
    whole = file.read_bytes()
    for damaged in (whole[:500], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(ModelFileError, match="Delete it to start afresh"):
            run(small_net(), checkpoint=file)
    safetensors.torch.save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ModelFileError, match="cannot be read"):
        run(small_net(), checkpoint=file)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="cannot write the checkpoint"):
        run(small_net(), checkpoint=tmp_path / "file" / "c")


def command(name: Path, pause: float = 0.0) -> list[str]:
    return [sys.executable, str(SCRIPT), str(name), str(pause)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The end state of a run in one process that nothing disturbed."""
    name = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(name), env=ENVIRONMENT, check=True)
    return safetensors.torch.load_file(f"{name}.net")


def test_kill_9_and_resume_end_with_the_same_bits(tmp_path, whole):
    name = tmp_path / "run"
    process = subprocess.Popen(command(name, pause=0.1), env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run.checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "run.net").exists()
    subprocess.run(command(name), env=ENVIRONMENT, check=True)
    assert same(safetensors.torch.load_file(tmp_path / "run.net"), whole)


def test_two_processes_do_what_one_does(tmp_path, whole):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    python, *script = command(tmp_path / "two")
    done = subprocess.run([python, *launch, *script], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = dict(whole), safetensors.torch.load_file(tmp_path / "two.net")
    assert (int(one.pop("processes")), int(two.pop("processes"))) == (1, 2)
    assert torch.allclose(one.pop("training"), two.pop("training"), rtol=1e-6)
    assert all(torch.allclose(one[k], two[k], rtol=1e-10, atol=1e-12) for k in one)
