"""The machinery of training: each test here fails if one part of it is left out or done at another time."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.testing import assert_close

from nablanets import GradNetC, GradNetM, Quadratic, fit
from nablanets.errors import InvalidInputError, ModelFileError, UnknownNameError
from nablanets.fitting import FitSettings, Schedule, fit_best_start, fit_many
from nablanets.fitting.batches import Batches, StackedBatches
from nablanets.fitting.checkpoint import read_checkpoint, restore_optimizer, write_checkpoint
from nablanets.fitting.objective import PackedTargets


class Interrupted(KeyboardInterrupt):
    """What a user's Ctrl-C raises, told from others."""


def _data(n=200, seed=0):
    x = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, 2 * x + x.flip(-1) + torch.sin(3 * x)


def _net(seed=0):
    torch.manual_seed(seed)
    return GradNetC(2, 6).double()


def _same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# The learning rate


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_the_peak_is_the_learning_rate_asked_for_and_the_decay_begins_there(decay):
    for warmup in torch.rand(50, generator=torch.Generator().manual_seed(1)).tolist():
        learning_rate = 0.1 + warmup
        schedule = Schedule(learning_rate, warmup, decay)
        rising = [schedule.at(warmup * k / 100) for k in range(100)]
        falling = [schedule.at(warmup + (1 - warmup) * k / 100) for k in range(101)]
        assert rising[0] == 0
        assert all(a < b for a, b in itertools.pairwise(rising))
        assert rising[50] == pytest.approx(learning_rate / 2)
        assert rising[-1] < learning_rate
        assert falling[0] == schedule.at(warmup) == learning_rate
        assert all(a >= b for a, b in itertools.pairwise(falling))
        assert falling[50] == pytest.approx(learning_rate / (1 if decay == "constant" else 2))
        assert schedule.at(1.0) == (learning_rate if decay == "constant" else 0)


def test_schedules_without_and_with_nothing_but_warmup():
    assert Schedule(2.0).at(0.0) == 2
    assert Schedule(2.0).at(0.5) == pytest.approx(1)
    assert [Schedule(2.0, warmup=1.0).at(t) for t in (0.0, 0.5, 1.0)] == [0, 1, 2]
    for changes in ({"learning_rate": 0.0}, {"learning_rate": math.nan}, {"warmup": -0.1}, {"warmup": 1.1}):
        with pytest.raises(InvalidInputError, match=r"positive|fraction"):
            Schedule(**{"learning_rate": 1.0, **changes})
    with pytest.raises(UnknownNameError, match="cosine"):
        Schedule(1.0, decay="cosin")


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_every_step_of_fit_and_of_fit_many_takes_the_learning_rate_of_the_schedule(schedule):
    x, g = _data()
    settings = FitSettings(steps=20, learning_rate=0.03, warmup=0.25, schedule=schedule, validate_every=1)
    expected = [Schedule(0.03, 0.25, schedule).at(k / 20) for k in range(20)]
    history = fit(_net(), x, g, settings=settings, progress=False).history
    assert [row.learning_rate for row in history] == expected
    assert max(expected) == 0.03
    (member,) = fit_many(_net, x, g, seeds=1, settings=settings)
    assert [row.learning_rate for row in member.result.history] == expected
    assert all(row.damping is None for row in [*history, *member.result.history])


def test_a_limit_in_time_drives_the_learning_rate():
    x, g = _data()
    history = fit(_net(), x, g, steps=10**9, max_seconds=0.2, validate_every=1, progress=False).history
    learning_rates = [row.learning_rate for row in history]
    assert learning_rates == sorted(learning_rates, reverse=True)
    assert learning_rates[-1] < 0.5 * learning_rates[0]


def test_a_damping_is_no_learning_rate():
    """On a linear problem the model of the error is exact, the gain ratio one, and the damping falls to a third."""
    x, g = _data()
    linear = nn.Linear(2, 2).double()
    history = fit(linear, x, g, optimizer="levenberg", steps=6, validate_every=1, progress=False).history
    assert all(row.learning_rate is None for row in history)
    assert [row.damping for row in history] == pytest.approx([3.0**-k for k in range(1, 7)])
    for row in fit(_net(), x, g, optimizer="lbfgs", steps=3, progress=False).history:
        assert row.learning_rate is None
        assert row.damping is None


def test_steps_that_fail_double_what_the_damping_is_multiplied_by():
    """From this start the first two steps overshoot: 1, times 2, times 4; then one succeeds, and a third is left."""
    x, g = _data()
    torch.manual_seed(0)
    net = Quadratic(2).double()
    history = fit(net, x, g, optimizer="levenberg", steps=3, batch_size=1000, validate_every=1, progress=False).history
    assert [row.damping for row in history] == pytest.approx([2, 8, 8 / 3])
    assert history[0].training_error == history[1].training_error > history[2].training_error


# A step


def _by_hand(net, x, g, settings, seed):
    """The last weights of fit, from its documentation: split, epochs, schedule, clipping, and torch's optimiser."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    train = order[round(0.1 * len(x)) :]
    rows = []
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    optimizer = kind(net.parameters(), weight_decay=settings.weight_decay)
    schedule = Schedule(settings.learning_rate, settings.warmup, settings.schedule)
    for step in range(settings.steps):
        if len(rows) < settings.batch_size:
            rows = train[torch.randperm(len(train), generator=generator)].tolist()
        batch, rows = rows[: settings.batch_size], rows[settings.batch_size :]
        optimizer.zero_grad()
        (net(x[batch]) - g[batch]).square().sum(dim=1).mean().backward()
        if settings.clip_norm is not None:
            norm = torch.stack([p.grad.square().sum() for p in net.parameters()]).sum().sqrt()
            for p in net.parameters():
                p.grad *= min(1.0, settings.clip_norm / float(norm))
        optimizer.param_groups[0]["lr"] = schedule.at(step / settings.steps)
        optimizer.step()
    return net


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_norm": 0.5},
        {"optimizer": "adamw", "weight_decay": 0.3},
        {"weight_decay": 0.3},
        {"warmup": 0.3},
        {"schedule": "constant"},
    ],
    ids=["plain", "clip_norm", "adamw", "penalty", "warmup", "constant"],
)
def test_fit_does_what_its_documentation_says(changes):
    x, g = _data()
    settings = FitSettings(steps=30, batch_size=32, learning_rate=1e-2, validate_every=30, seed=7).update(**changes)
    net = _net()
    expected = _by_hand(copy.deepcopy(net), x, g, settings, seed=7)
    fit(net, x, g, settings=settings, progress=False)
    assert_close(list(net.parameters()), list(expected.parameters()), rtol=1e-6, atol=1e-8)


def test_the_gradient_that_a_step_takes_has_at_most_the_norm_asked_for():
    x, g = _data()
    for clip_norm in (None, 0.01):
        net = _net()
        fit(net, x, g, steps=1, clip_norm=clip_norm, progress=False)
        norm = float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())
        assert norm > 0.1 if clip_norm is None else norm == pytest.approx(0.01, rel=1e-4)


# Samples


def _rows_seen(net, x, g, **options):
    """Rows of x that the network sees with a graph, to train, and without one, to validate; as sets of numbers."""
    number = {tuple(row): k for k, row in enumerate(x.tolist())}
    seen = {True: set(), False: set()}

    def record(module, args):
        if module is net:  # not the copies in a stack
            seen[torch.is_grad_enabled()].update(number[tuple(row)] for row in args[0].tolist())

    handle = net.register_forward_pre_hook(record)
    fit(net, x, g, progress=False, **options)
    handle.remove()
    return seen[True], seen[False]


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_rows_to_validate_on_are_never_trained_on_and_no_row_is_lost(optimizer):
    x, g = _data()
    options = {"optimizer": optimizer, "steps": 12, "batch_size": 60 if optimizer == "adam" else 1000}
    trained, validated = _rows_seen(_net(), x, g, validation=0.2, **options)
    assert len(validated) == 40
    assert not trained & validated
    assert trained | validated == set(range(200))
    others = [_rows_seen(_net(), x, g, validation=0.2, seed=seed, **options)[1] for seed in (0, 1)]
    assert others[0] == validated != others[1]


@pytest.mark.parametrize("how", ["adam", "lbfgs", "levenberg", "many"])
def test_targets_of_validation_rows_do_not_reach_the_weights(how):
    """With one validation, at the end, the weights are the last ones; targets of held-out rows must not change them."""
    x, g = _data()
    _, validated = _rows_seen(_net(), x, g, steps=1, validation=0.2)
    rows = torch.tensor(sorted(validated))
    other = next(k for k in range(200) if k not in validated)

    def weights(targets):
        settings = FitSettings(steps=8, batch_size=1000, validate_every=8)
        if how == "many":
            return fit_many(_net, x, targets, seeds=1, validation=0.2, settings=settings)[0].net
        net = _net()
        fit(net, x, targets, validation=0.2, settings=settings.update(optimizer=how), progress=False)
        return net

    plain = weights(g)
    assert _same(plain, weights(g.index_add(0, rows, torch.full((len(rows), 2), 3.0, dtype=g.dtype))))
    assert not _same(plain, weights(g.index_add(0, torch.tensor([other]), torch.ones(1, 2, dtype=g.dtype))))


@pytest.mark.parametrize("stacked", [False, True])
def test_an_epoch_has_each_row_once_and_the_next_one_another_order(stacked):
    x = torch.arange(12.0).unsqueeze(1)
    generator = torch.Generator().manual_seed(0)
    batches = StackedBatches([(x, x)], 4, [generator]) if stacked else Batches(x, x, 4, generator)
    epochs = []
    for _ in range(3):
        parts = [batches.next() for _ in range(3)]
        parts = [(a.clone(), b.clone()) for a, b in parts]
        assert all(torch.equal(a, b) for a, b in parts)
        epochs.append(torch.cat([a.flatten() for a, _ in parts]).tolist())
    assert all(sorted(epoch) == x.flatten().tolist() for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_batches_go_on_from_their_state():
    x, g = _data(23)
    batches = Batches(x, g, 5, torch.Generator().manual_seed(3))
    for _ in range(7):
        batches.next()
    state = copy.deepcopy(batches.state())
    expected = [batches.next() for _ in range(9)]
    other = Batches(x, g, 5, torch.Generator().manual_seed(4))
    other.restore(state)
    for pair in expected:
        assert all(torch.equal(a, b) for a, b in zip(other.next(), pair, strict=True))


# Validation, patience and the best weights


class _Walk(nn.Module):
    """One weight, which Adam at a constant learning rate of 1 on the loss w takes from 0 to -k in k steps."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return x + self.w


class _Script(PackedTargets):
    """Trains on w, and validates by a list: its entry k after k steps."""

    def __init__(self, errors):
        self.errors = errors

    def pack(self, x):
        return torch.zeros(len(x), 1, dtype=x.dtype)

    def __call__(self, net, x, packed):
        if torch.is_grad_enabled():
            return net.w.sum()
        return torch.tensor(self.errors[round(-float(net.w.detach()))])

    def signature(self):
        return {"errors": self.errors}


def _walk(errors, net=None, **options):
    net = _Walk() if net is None else net
    x = torch.zeros(10, 1, dtype=torch.float64)
    options = {"steps": len(errors) - 1, "learning_rate": 1.0, "schedule": "constant", "validate_every": 1} | options
    return net, fit(net, x, _Script(errors), progress=False, **options)


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_patience_is_the_number_of_validations_without_a_new_best(patience):
    errors = [9.0, 5.0, 4.0, 3.0, 3.0, 4.0, 5.0, 3.5, 3.2, 1.0]
    net, result = _walk(errors, patience=patience)
    assert result.stop_reason == "patience"
    assert result.steps == len(result.history) == 3 + patience
    assert (result.best_step, result.best_validation_error) == (3, 3.0)
    assert float(net.w.detach()) == pytest.approx(-3)


def test_a_late_best_ends_the_wait_and_the_best_weights_are_returned():
    errors = [9.0, 5.0, 4.0, 6.0, 6.0, 3.0, 6.0, 6.0, 6.0, 2.0]
    assert _walk(errors, patience=3)[1].steps == 8
    net, result = _walk(errors, patience=4)
    assert (result.stop_reason, result.steps, result.best_step) == ("steps", 9, 9)
    net, result = _walk(errors[:-1])
    assert (result.stop_reason, result.steps, result.best_step) == ("steps", 8, 5)
    assert float(net.w.detach()) == pytest.approx(-5)
    assert [row.validation_error for row in result.history] == errors[1:-1]


def test_a_fit_stops_where_the_error_is_no_longer_a_number():
    net, result = _walk([9.0, 5.0, math.nan, 1.0, 1.0])
    assert (result.stop_reason, result.steps) == ("diverged", 2)
    assert float(net.w.detach()) == pytest.approx(-1)


@pytest.mark.parametrize("every", [1, 3, 4])
def test_rows_have_the_mean_loss_since_the_last_one(every):
    """The loss that step k sees is that after k - 1 steps, -(k - 1)."""
    _, result = _walk([1.0] * 11, validate_every=every)
    steps = [*range(every, 10, every), 10]
    assert [row.step for row in result.history] == steps
    for row, before in zip(result.history, [0, *steps[:-1]], strict=True):
        losses = [-k for k in range(before, row.step)]
        assert row.training_error == pytest.approx(sum(losses) / len(losses))


def test_members_record_and_keep_what_fit_does():
    """At a learning rate so large that the best weights are not the last ones."""
    x, g = _data()
    settings = FitSettings(steps=40, batch_size=1000, learning_rate=0.5, schedule="constant", validate_every=4)
    (member,) = fit_many(_net, x, g, seeds=1, settings=settings, validation=(x[:50], g[:50]))
    net = _net()
    result = fit(net, x, g, settings=settings, validation=(x[:50], g[:50]), progress=False)
    assert member.result.best_step == result.best_step < 40
    assert_close(list(member.net.parameters()), list(net.parameters()), rtol=1e-6, atol=1e-8)
    for found, wanted in zip(member.result.history, result.history, strict=True):
        assert found.step == wanted.step
        assert found.training_error == pytest.approx(wanted.training_error, rel=1e-6)
        assert found.validation_error == pytest.approx(wanted.validation_error, rel=1e-6)


def test_patience_goes_on_counting_after_an_interruption(tmp_path):
    errors = [9.0, 5.0, 4.0, 6.0, 6.0, 6.0, 6.0, 6.0, 2.0]

    def stop(row):
        if row.step == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        _walk(errors, patience=3, checkpoint=tmp_path / "state", report=stop)
    net, result = _walk(errors, patience=3, checkpoint=tmp_path / "state")
    assert (result.stop_reason, result.steps, result.best_step) == ("patience", 5, 2)
    assert float(net.w.detach()) == pytest.approx(-2)


# Resuming


class _Dropped(nn.Module):
    """A network that draws from torch's generator, and is interrupted in the middle of a step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 2)).double()
        self.left = math.inf

    def forward(self, x):
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left < 0:
                raise Interrupted
        return self.layers(x)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "lbfgs"])
@pytest.mark.parametrize("calls", [21, 33, 39])
def test_a_step_that_was_interrupted_is_taken_again_as_a_whole(tmp_path, optimizer, calls):
    x, g = _data()
    options = {
        "optimizer": optimizer, "steps": 40, "batch_size": 33, "validate_every": 5, "progress": False, "warmup": 0.5,
    }  # fmt: skip
    whole = _Dropped()
    torch.manual_seed(1)
    expected = fit(whole, x, g, **options)
    part = _Dropped()
    part.left = calls
    torch.manual_seed(1)
    with pytest.raises(Interrupted):
        fit(part, x, g, checkpoint=tmp_path / "state", **options)
    resumed = _Dropped()
    torch.manual_seed(2)
    result = fit(resumed, x, g, checkpoint=tmp_path / "state", **options)
    assert _same(whole, resumed)
    assert [row._replace(seconds=0) for row in result.history] == [row._replace(seconds=0) for row in expected.history]
    assert (result.best_step, result.steps, result.stop_reason) == (expected.best_step, 40, expected.stop_reason)


def _build():
    return GradNetM(2, 5)


@pytest.mark.parametrize(("optimizer", "report_number"), [("adam", 2), ("adam", 6), ("levenberg", 3)])
def test_several_starts_resume_too_and_say_what_became_of_them(tmp_path, optimizer, report_number):
    x, g = _data(400)
    settings = FitSettings(steps=60, batch_size=32, optimizer=optimizer, validate_every=10)
    options = {"starts": 5, "start_steps": 8, "settings": settings, "progress": False}
    torch.manual_seed(0)
    whole, expected = fit_best_start(_build, x.float(), g.float(), **options)
    rows = []

    def stop(row):
        rows.append(row)
        if len(rows) == report_number:
            raise Interrupted

    file = tmp_path / "state"
    torch.manual_seed(0)
    with pytest.raises(Interrupted):
        fit_best_start(_build, x.float(), g.float(), checkpoint=file, report=stop, **options)
    torch.manual_seed(0)
    resumed, result = fit_best_start(_build, x.float(), g.float(), checkpoint=file, **options)
    assert _same(whole, resumed)
    assert (result.starts, result.best_start) == (expected.starts, expected.best_start)
    assert result.best_validation_error == expected.best_validation_error
    steps = sorted(start.steps for start in result.starts)
    assert steps == ([8] * 5 if optimizer == "adam" else [8, 8, 16, 24, 60])  # 5, 3, 2 and 1 are left
    best = result.starts[result.best_start]
    if optimizer == "adam":
        assert best.validation_error == min(start.validation_error for start in result.starts)
        assert len({start.validation_error for start in result.starts}) == 5
        assert [row.step for row in result.history] == [8, 50, 60]  # 40 steps are those of the starts
    else:
        assert best.steps == 60
        assert result.best_validation_error == pytest.approx(best.validation_error, rel=0.01)


# Checkpoints


def _state():
    shared = torch.arange(6.0)
    return {
        "numbers": [1, 2.5, math.pi, -math.inf, True, None, "text"],
        "tuple": (0.9, 0.999),
        "nested": {0: {"step": torch.tensor(3.0), "empty": {}}, "1": [torch.zeros(0, 2), []]},
        "shared": [shared[:3], shared.view(2, 3).mT],
        "types": [torch.tensor([1, 255], dtype=torch.uint8), torch.ones(2, dtype=torch.bfloat16), torch.tensor(False)],
    }


def _equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and a == b


def test_a_state_comes_back_as_it_was_from_tensors_and_json(tmp_path):
    file = tmp_path / "folder" / "state"
    write_checkpoint(file, {"seed": 1}, _state())
    assert _equal(read_checkpoint(file, {"seed": 1}), _state())
    with safetensors.safe_open(file, framework="pt") as content:
        description = json.loads(content.metadata()["nablanets-checkpoint"])
    assert description["fingerprint"] == {"seed": 1}
    assert [path.name for path in file.parent.iterdir()] == ["state"]


def test_a_damaged_checkpoint_is_refused_wherever_the_damage_is(tmp_path):
    file = tmp_path / "state"
    write_checkpoint(file, {"seed": 1}, _state())
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"cannot be read .* Delete it to start afresh"):
            read_checkpoint(file, {"seed": 1})
    for place in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        try:
            found = read_checkpoint(file, {"seed": 1})
        except ModelFileError:
            continue
        assert _equal(found, _state())  # padding, or a space
    weights = bytearray(whole)
    weights[-1] ^= 64
    file.write_bytes(weights)
    with pytest.raises(ModelFileError, match="checksum"):
        read_checkpoint(file, {"seed": 1})


class _Evil:
    def __reduce__(self):
        return print, ("a checkpoint ran code",)


def test_files_of_other_kinds_are_refused_and_nothing_in_them_is_run(tmp_path, capsys):
    file = tmp_path / "state"
    torch.save({"fingerprint": "", "step": 1, "evil": _Evil()}, file)
    with pytest.raises(ModelFileError, match="cannot be read"):
        fit(_net(), *_data(), checkpoint=file, progress=False)
    assert capsys.readouterr().out == ""
    _net().save(file)
    with pytest.raises(ModelFileError, match="not a checkpoint of this version"):
        fit(_net(), *_data(), checkpoint=file, progress=False)


def test_a_checkpoint_of_another_training_is_refused_and_the_difference_named(tmp_path):
    x, g = _data()
    file = tmp_path / "state"
    options = {"steps": 10, "progress": False, "checkpoint": file}
    fit(_net(), x, g, **options)
    before = file.read_bytes()
    wide = GradNetC(2, 7).double()
    changed = [
        (lambda: fit(_net(), x, g, **{**options, "steps": 11}), r"settings.steps: 10 there, 11 here"),
        (lambda: fit(_net(), x, g, learning_rate=0.1, **options), r"settings.learning_rate: 0.005 there, 0.1 here"),
        (lambda: fit(_net(), x, 2 * g, **options), "training_samples"),
        (lambda: fit(_net(), x, g, validation=(x[:9], g[:9]), **options), "validation_samples"),
        (lambda: fit(wide, x, g, **options), "network.shapes"),
    ]
    for run, difference in changed:
        with pytest.raises(ModelFileError, match=rf"other settings, data or network:\n(.*\n)*  {difference}"):
            run()
    assert file.read_bytes() == before


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    file = tmp_path / "state"
    write_checkpoint(file, {}, {"step": 1})

    def full(*args, **options):
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ModelFileError, match=r"cannot write the checkpoint .*no space left"):
        write_checkpoint(file, {}, {"step": 2})
    assert read_checkpoint(file, {}) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_an_optimiser_gets_back_its_state_in_the_layout_of_its_parameters():
    def build():
        p = nn.Parameter(torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last))
        return p, torch.optim.Adam([p])

    p, optimizer = build()
    p.square().sum().backward()
    optimizer.step()
    saved = {0: {name: value.contiguous() for name, value in optimizer.state[p].items()}}
    q, other = build()
    restore_optimizer(other, saved)
    for name, value in optimizer.state[p].items():
        assert torch.equal(other.state[q][name], value)
        assert other.state[q][name].stride() == value.stride()
