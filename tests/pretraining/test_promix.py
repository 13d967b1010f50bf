"""ProMix: its network, its choices and its losses against independent computations in numpy; its passes, its schedule, and whole runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fspmu.data.augment import Views, apply_views, normalise
from fspmu.data.images import Images
from fspmu.data.strong_views import apply_strong_views, draw_strong_views
from fspmu.engine.checkpoint import build_model, load_tensors
from fspmu.engine.processes import Processes
from fspmu.engine.run import Run
from fspmu.engine.training import sgd, train_epoch
from fspmu.errors import InputError, check_settings
from fspmu.experiments.experiment import Pretrain
from fspmu.models import WIDTHS
from fspmu.models.classifier import Classifier, Description, reinitialised
from fspmu.models.resnet import Convolution, resnet18
from fspmu.preprocessing import Preprocessing
from fspmu.pretraining import METHODS
from fspmu.pretraining.promix import Schedule, Settings, TwoHeads, agreement, promix_loss, schedule_of, smallest_losses, suited_to, warm_up_loss
from fspmu.pretraining.promix_views import PairedBatches, PairedViews, draw_mixing, fmix_masks, partners
from fspmu.pretraining.trained import Situation
from fspmu.results.store import RunFolder

C10_SYM50 = suited_to(Settings(), Situation(10, "sym", 0.5))
VIEWS = Preprocessing((0.5,) * 3, (0.25,) * 3, "crop-flip", 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


# The network.


@pytest.mark.parametrize(("classes", "with_pseudo_head"), [(10, 11_179_092), (100, 11_271_432)])
def test_the_published_size(classes, with_pseudo_head):
    model = resnet18(classes, width=WIDTHS["resnet18"])
    assert size_of(TwoHeads(model, seeded())) == with_pseudo_head
    assert size_of(model) == with_pseudo_head - 512 * classes - classes
    assert model.feature_width == 512 and sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 20


def test_its_weights_are_drawn_by_fan_out_whenever_it_is_reset():
    for model in (resnet18(4, width=32), reinitialised(resnet18(4, width=32), seeded())):
        for module in model.modules():
            if isinstance(module, Convolution):
                assert module.bias is None
                assert float(module.weight.detach().std()) == pytest.approx((2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5, rel=0.1)
            if isinstance(module, nn.BatchNorm2d):
                assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())


def test_activations_come_last_and_the_shortcuts_are_normalised():
    model = resnet18(4, width=4)
    places = model.backbone[:-1](torch.randn(2, 3, 32, 32, generator=seeded()))
    assert places.shape == (2, 32, 4, 4) and bool((places >= 0).all())
    shortcuts = [module.skip for module in model.modules() if hasattr(module, "skip")]
    assert [len(list(skip.children())) for skip in shortcuts] == [0, 0, 2, 0, 2, 0, 2, 0]


def test_the_pseudo_head_has_its_own_draws_and_the_classifier_stays_whole():
    model = build_model(Description("smallcnn", {"width": 4}, tuple("abcd")), seeded())
    first, again, other = (TwoHeads(model, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.pseudo.weight, again.pseudo.weight) and not torch.equal(first.pseudo.weight, other.pseudo.weight)
    images = torch.randn(5, 3, 8, 8, generator=seeded())
    both, alone = first.eval()(images), model.eval()(images)
    assert torch.equal(both.logits[:, :4], alone.logits) and torch.equal(both.features, alone.features)
    assert bool((first.priors == 0.25).all()) and first.priors.shape == (2, 4)
    assert first.backbone is model.backbone and first.head is model.head


# Settings and schedule.


@pytest.mark.parametrize(
    ("classes", "mode", "rate", "expected"),
    [
        (10, "sym", 0.2, (10, 0.7, 0.99, 0.8, 0.0)),
        (10, "sym", 0.5, (10, 0.5, 0.99, 0.8, 0.0)),
        (10, "asym", 0.4, (10, 0.5, 0.99, 0.8, 1.0)),
        (100, "sym", 0.2, (30, 0.7, 0.95, 0.5, 0.0)),
        (100, "sym", 0.5, (30, 0.5, 0.95, 0.5, 0.0)),
        (100, "asym", 0.4, (30, 0.5, 0.95, 0.5, 1.0)),  # from here on our rule
        (10, "none", 0.0, (10, 0.7, 0.99, 0.8, 0.0)),
        (20, "sym", 0.4, (10, 0.5, 0.99, 0.8, 0.0)),
        (21, "sym", 0.6, (30, 0.4, 0.95, 0.5, 0.0)),
        (10, "sym", 0.8, (10, 0.2, 0.99, 0.8, 0.0)),
        (10, "sym", 0.9, (10, 0.1, 0.99, 0.8, 0.0)),
    ],
)
def test_what_suits_the_situation(classes, mode, rate, expected):
    found = suited_to(Settings(), Situation(classes, mode, rate))
    assert (found.warm_up, found.rho_start, found.tau_conf, found.debias, found.penalty) == expected
    assert found.rho_end == found.rho_start
    assert not [name for name, value in vars(found).items() if value is None]
    check_settings(found)


def test_what_is_given_is_kept():
    given = suited_to(Settings(rho_start=0.3, warm_up=2, debias=0.0), Situation(10, "sym", 0.2))
    assert (given.rho_start, given.rho_end, given.warm_up, given.debias, given.tau_conf) == (0.3, 0.3, 2, 0.0, 0.99)
    assert suited_to(Settings(rho_end=0.9), Situation(10, "sym", 0.2)).rho_start == 0.7


def test_published_values():
    settings = METHODS["promix"].settings
    assert (settings.epochs, settings.batch_size, settings.lr, settings.lr_end, settings.momentum, settings.weight_decay) == (601, 256, 0.05, 5e-5, 0.9, 5e-4)
    assert (settings.ramp_up, settings.agreement_share, settings.prior_memory, settings.mixup, settings.fmix) == (50, 0.9, 0.9999, 4.0, 1.0)
    assert (settings.sharpening, settings.strong_ops, settings.keep, settings.shared_mixing, settings.isotropic_fmix) == (0.5, 3, "net1", False, False)


def test_no_flag_means_two_things():
    shared = {
        field
        for group in (Pretrain, *(getattr(Pretrain.__dataclass_fields__[name], "default_factory", None) for name in ("data", "noise", "compute")))
        if hasattr(group, "__dataclass_fields__")
        for field in group.__dataclass_fields__
    }
    assert {"seed", "out", "noise_rate", "limit"} <= shared
    assert not shared & set(Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    "wrong",
    [{"rho_start": 1.2}, {"tau_conf": -0.1}, {"prior_memory": 2.0}, {"pseudo_epochs": 0}, {"strong_ops": 0}, {"fmix": 0.0}, {"lr_end": -1.0}, {"ramp_up": 0}],
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(InputError, match=f"--{next(iter(wrong)).replace('_', '-')} is"):
        check_settings(replace(C10_SYM50, **wrong))


def test_the_schedule_by_published_epochs_which_count_from_0():
    settings = replace(C10_SYM50, rho_start=0.4, rho_end=0.6)
    at = {index: schedule_of(settings, index + 1) for index in (0, 10, 25, 50, 99, 100, 300, 350, 351, 600)}
    assert at[0].lr == pytest.approx(0.05) and at[600].lr == pytest.approx(5e-5) and at[300].lr == pytest.approx((0.05 + 5e-5) / 2)
    assert (at[0].ramp, at[25].ramp, at[50].ramp, at[600].ramp) == (0, 0.5, 1, 1)
    assert at[10].pseudo == pytest.approx(0.01) and at[99].pseudo == pytest.approx(0.099) and at[100].pseudo == at[600].pseudo == 0
    assert (at[350].agreement, at[351].agreement) == (False, True)
    assert (at[0].rho, at[25].rho, at[50].rho, at[600].rho) == pytest.approx((0.4, 0.5, 0.6, 0.6))
    assert schedule_of(replace(settings, debias=0.0), 401).pseudo == 1
    assert schedule_of(replace(settings, epochs=1), 1).lr == pytest.approx(0.05)


# Whom a network trusts.


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 1.0])
def test_the_smallest_losses_of_each_class(share):
    logits, draw = torch.randn(400, 7, generator=seeded()), np.random.default_rng(0)
    labels = torch.tensor(draw.choice(6, 400, p=[0.4, 0.3, 0.15, 0.1, 0.04, 0.01]))  # the seventh class has no sample
    chosen = torch.tensor(draw.random(400) < 0.9)
    per_class = share * int(chosen.sum()) / 7
    mask = smallest_losses(logits, labels, chosen, per_class)
    z = logits.double().numpy()
    losses = np.log(np.exp(z).sum(1)) - z[np.arange(400), labels]
    expected = np.zeros(400, dtype=bool)
    for label in range(7):
        members = np.flatnonzero((labels.numpy() == label) & chosen.numpy())
        count = max(1, min(int(np.ceil(per_class)), len(members)))
        expected[members[np.argsort(losses[members])[:count]]] = True
    assert np.array_equal(mask.numpy(), expected)


def test_a_share_of_a_whole_number_is_not_rounded_up():
    labels = torch.zeros(5000, dtype=torch.int64)
    assert int(smallest_losses(torch.zeros(5000, 1), labels, labels == 0, (1 - 0.7) * 5000).sum()) == 1500  # (1 - 0.7) * 5000 > 1500 in floats


@pytest.mark.parametrize("already", [0, 30, 50, 57, 60, 64])
def test_agreement_adds_the_surest_and_no_more_than_there_is_room_for(already):
    draw, size, tau = np.random.default_rng(already), 64, 0.6
    own, peer = (torch.tensor(draw.dirichlet([0.15] * 3, size)).float() for _ in range(2))
    trusted = torch.zeros(size, dtype=torch.bool)
    trusted[torch.randperm(size, generator=seeded())[:already]] = True
    joining = agreement(own, peer, trusted, tau, int(0.9 * size))
    sure = torch.minimum(own.amax(1), peer.amax(1)) > tau
    candidates = [i for i in range(size) if not trusted[i] and sure[i] and own[i].argmax() == peer[i].argmax()]
    room = max(0, int(0.9 * size) - already)
    ranked = sorted(candidates, key=lambda i: -float(own[i].max() + peer[i].max()))
    assert joining.nonzero().squeeze(1).tolist() == sorted(ranked[:room])
    assert int(joining.sum()) == min(len(candidates), room)


# The draws of a pass.


@pytest.mark.parametrize("isotropic", [False, True])
def test_a_mask_covers_its_share(isotropic):
    lam = torch.cat([torch.rand(500, generator=seeded(), dtype=torch.float64), torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)])
    masks = fmix_masks(lam, 32, 32, seeded(1), isotropic=isotropic)
    assert masks.shape == (503, 32, 32) and masks.dtype == torch.bool
    covered = masks.double().mean(dim=(1, 2))
    assert float((covered - lam).abs().max()) < 1 / 1024
    assert covered[-3:].tolist() == [0, 1, 0.5]
    assert 0.4 < float((covered > lam)[:500].double().mean()) < 0.6  # up or down at random
    assert torch.equal(masks, fmix_masks(lam, 32, 32, seeded(1), isotropic=isotropic))


def test_the_field_of_a_mask():
    height, width, count, decay = 12, 10, 40, 3
    masks = fmix_masks(torch.full((count,), 0.5, dtype=torch.float64), height, width, seeded(2))
    drawn = torch.randn(2, count, 7, 2, generator=seeded(2), dtype=torch.float64).numpy()
    y, x = np.mgrid[:height, :width]
    for row in range(count):
        field = np.zeros((height, width), dtype=complex)
        for v in range(7):
            for t in (0, 1):
                coefficient = drawn[0, row, v, t] / max(v, 1) ** decay + 1j * drawn[1, row, v, t] / (1 + v * v) ** (decay / 2)
                field += (1 + t) * coefficient * np.exp(2j * np.pi * (v * y / height + t * x / width))
        assert field.real[masks[row].numpy()].min() > field.real[~masks[row].numpy()].max()


def test_an_isotropic_mask_is_as_long_as_it_is_wide():
    def borders(isotropic):
        masks = fmix_masks(torch.full((400,), 0.5, dtype=torch.float64), 32, 32, seeded(3), isotropic=isotropic)
        return [float((masks.roll(1, axis) != masks).double().mean()) for axis in (1, 2)]

    down, along = borders(isotropic=True)
    assert down == pytest.approx(along, rel=0.1)
    down, along = borders(isotropic=False)
    assert along == pytest.approx(1 / 16, rel=0.1) and down < 0.8 * along  # one wave across: two borders in each row


def test_partners_are_a_permutation_of_the_trusted():
    orders = torch.rand(3000, 8, generator=seeded()).argsort(dim=1)
    rows = torch.tensor([1, 4, 6])
    found = [tuple(partners(order, rows).tolist()) for order in orders]
    counts = [found.count(permutation) for permutation in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))]
    assert sum(counts) == 3000 and min(counts) > 400 and max(counts) < 600


def test_the_draws_that_mix():
    orders, lams, masks = draw_mixing(2000, 5, 4, 6, C10_SYM50, seeded())
    assert orders.shape == (2000, 2, 2, 2, 5) and lams.shape == (2000, 2, 2, 2) and masks.shape == (2000, 2, 2, 4, 6)
    assert torch.equal(orders.sort(dim=-1).values, torch.arange(5).expand(orders.shape))
    mixup, fmix = lams.unbind(-1)
    assert float(mixup.min()) >= 0.5 and float(fmix.min()) < 0.01
    assert float((mixup - 0.5).square().mean()) == pytest.approx(1 / 36, rel=0.1)  # the variance of Beta(4, 4)
    assert float(fmix.var()) == pytest.approx(1 / 12, rel=0.1)  # and of Beta(1, 1)
    assert [draws.shape[1:3] for draws in draw_mixing(3, 5, 4, 6, replace(C10_SYM50, shared_mixing=True), seeded())] == [(2, 1)] * 3


def make_images(count=60, preprocessing=VIEWS):
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 100, (count, 3, 8, 8), dtype=torch.uint8, generator=seeded(1))
    pixels[torch.arange(count), :, labels * 2] += 100  # a bright line tells the class
    return Images(pixels, labels, tuple("abcd"), [str(row) for row in range(count)], preprocessing=preprocessing)


def test_batches_are_full_but_for_the_only_one():
    images, everything = make_images(), torch.ones(60, dtype=torch.bool)
    sizes = {size: [len(batch) for batch in PairedBatches(images, everything, replace(C10_SYM50, batch_size=size), Run(), 1)] for size in (16, 20, 60, 64)}
    assert sizes == {16: [16] * 3, 20: [20] * 3, 60: [60], 64: [60]}
    missed = [
        set(range(60)) - {i for batch in PairedBatches(images, everything, replace(C10_SYM50, batch_size=16), Run(), epoch) for i in batch.index.tolist()}
        for epoch in (1, 2)
    ]
    assert len(missed[0]) == len(missed[1]) == 12 and missed[0] != missed[1]
    some = torch.arange(60) % 2 == 0
    assert all(i % 2 == 0 for batch in PairedBatches(images, some, replace(C10_SYM50, batch_size=8), Run(), 1) for i in batch.index.tolist())


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_both_views_are_of_the_same_samples(augment):
    images, run = make_images(preprocessing=replace(VIEWS, augment=augment)), Run()
    batches = list(PairedBatches(images, torch.ones(60, dtype=torch.bool), replace(C10_SYM50, batch_size=20), run, 3))
    index = torch.cat([batch.index for batch in batches])
    pixels = apply_strong_views(images.pixels[index], draw_strong_views(60, 8, 8, run.generator("", "strong view", 3)))
    if augment != "none":
        draw = run.generator("", "strong crop", 3)
        offsets, flips = torch.randint(0, 3, (2, 60), generator=draw), torch.rand(60, generator=draw) < 0.5
        pixels = apply_views(pixels, Views(offsets[0], offsets[1], flips), 1)
    torch.testing.assert_close(torch.cat([batch.strong for batch in batches]), normalise(pixels, VIEWS))
    weak = torch.cat([batch.images for batch in batches])
    assert torch.equal(weak, normalise(images.pixels[index], VIEWS)) == (augment == "none")
    assert torch.equal(torch.cat([batch.given_labels for batch in batches]), images.given_labels[index])
    assert batches[0].parts(1) == [batches[0]]
    with pytest.raises(InputError, match="lower --batch-size"):
        batches[0].parts(2)


# The loss.


def linear_heads(classes=3):
    """Return two networks without batch norm, so that each row's logits are its own; they see things alike."""
    heads = []
    for seed in (1, 2):
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 6), nn.Tanh())
        net = TwoHeads(Classifier(backbone, nn.Linear(6, classes)), seeded(seed))
        for number, parameter in enumerate(net.parameters()):
            common, own = (torch.randn(parameter.shape, generator=seeded(place)) for place in (number, 10 * seed + number))
            parameter.data = common + 0.3 * own
        net.priors = torch.tensor(np.random.default_rng(seed).dirichlet([0.7] * classes, 2)).float()
        heads.append(net)
    return heads


def make_batch(rows=20, shared=False):
    draw = seeded(5)
    images, strong = (torch.randn(rows, 2, 4, 4, generator=draw) for _ in range(2))
    mixing = draw_mixing(1, rows, 4, 4, replace(C10_SYM50, shared_mixing=shared), draw)
    return PairedViews(images, torch.randint(0, 3, (rows,), generator=draw), torch.arange(rows), None, None, strong, *(part[0] for part in mixing))


def log_softmax(z):
    return z - z.max(1, keepdims=True) - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))


def cross_entropy(z, labels):
    return float(-log_softmax(z)[np.arange(len(z)), labels].mean()) if len(z) else 0.0


def independent_loss(heads, batch, small, schedule, tau, alpha, share=0.9):
    """Return the loss of a step and the new priors, in float64 numpy, term by term."""

    def logits(net, images):
        w = {name: value.detach().double().numpy() for name, value in net.named_parameters()}
        hidden = np.tanh(images.reshape(len(images), -1) @ w["backbone.1.weight"].T + w["backbone.1.bias"])
        return hidden @ w["head.weight"].T + w["head.bias"], hidden @ w["pseudo.weight"].T + w["pseudo.bias"]

    x, s, y = batch.images.double().numpy(), batch.strong.double().numpy(), batch.given_labels.numpy()
    p = [np.exp(log_softmax(logits(net, x)[0])) for net in heads]
    total, priors = 0.0, []
    for k, net in enumerate(heads):
        pi, ramp = net.priors.double().numpy(), schedule.ramp
        labels, trusted = y.copy(), small[k].numpy() | (p[k][np.arange(len(y)), y] > tau)
        if schedule.agreement and trusted.sum() < share * len(y):
            both = [i for i in np.flatnonzero(~trusted) if min(q[i].max() for q in p) > tau and p[0][i].argmax() == p[1][i].argmax()]
            both = sorted(both, key=lambda i: -(p[0][i].max() + p[1][i].max()))[: int(share * len(y)) - trusted.sum()]
            labels[both] = (logits(net, x)[0] - alpha * np.log(pi[0])).argmax(1)[both]
            trusted[both] = True
        D, U, yt = np.flatnonzero(trusted), np.flatnonzero(~trusted), labels[trusted]
        for h in (0, 1):
            total += cross_entropy((logits(net, x)[h] + alpha * np.log(pi[0]))[D], yt)
            total += ramp * cross_entropy((logits(net, s)[h] + alpha * np.log(pi[0]))[D], yt)
            m = h if batch.orders.shape[1] == 2 else 0
            for kind in (0, 1):
                if len(D) < 2:
                    continue
                partner, lam = np.argsort(batch.orders[k, m, kind].numpy()[D]), float(batch.lams[k, m, kind])
                if kind == 0:
                    mixed = lam * x[D] + (1 - lam) * x[D][partner]
                    soft = lam * np.eye(3)[yt] + (1 - lam) * np.eye(3)[yt[partner]]
                    total += ramp * float(-(soft * log_softmax(logits(net, mixed)[h] + alpha * np.log(pi[0]))).sum(1).mean())
                else:
                    mask = batch.masks[k, m].numpy()
                    z = logits(net, np.where(mask, x[D], x[D][partner]))[h] + alpha * np.log(pi[0])
                    total += ramp * (lam * cross_entropy(z, yt) + (1 - lam) * cross_entropy(z, yt[partner]))
        if len(U) and schedule.pseudo:
            q = np.exp(log_softmax(logits(net, x)[0] - alpha * np.log(pi[1])))[U] ** 2
            q /= q.sum(1, keepdims=True)
            for view, weight in ((x, 1), (s, ramp)):
                total += schedule.pseudo * weight * float(-(q * log_softmax((logits(net, view)[1] + alpha * np.log(pi[1]))[U])).sum(1).mean())
        priors.append([0.99 * pi[which] + 0.01 * p[k][rows].mean(0) if len(rows) else pi[which] for which, rows in enumerate((D, U))])
    return total, priors


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("small", "tau", "late", "pseudo"),
    [
        ("some", 0.8, False, 0.07),
        ("some", 0.8, True, 0.0),
        ("none", 0.45, True, 0.07),
        ("none", 1.0, False, 0.07),
        ("all", 0.9, True, 1.0),
        ("none", 1.0, False, 0.0),
        ("one", 1.0, False, 0.1),
    ],
)
def test_the_loss_of_a_step(small, tau, late, pseudo, shared):
    heads, batch, alpha = linear_heads(), make_batch(shared=shared), 0.8
    masks = {"some": torch.rand(2, 20, generator=seeded(9)) < 0.4, "none": torch.zeros(2, 20, dtype=torch.bool), "all": torch.ones(2, 20, dtype=torch.bool)}
    masks["one"] = torch.arange(20).expand(2, 20) == 7
    schedule = Schedule(lr=0.1, rho=0.5, ramp=0.6, pseudo=pseudo, agreement=late)
    settings = replace(C10_SYM50, tau_conf=tau, debias=alpha, prior_memory=0.99, shared_mixing=shared)
    expected, priors = independent_loss(heads, batch, masks[small], schedule, tau, alpha)
    value, figures = promix_loss(heads, masks[small], schedule, settings, Run())(None, batch)
    assert value.item() == pytest.approx(expected, rel=2e-5, abs=1e-6)
    for net, prior in zip(heads, priors, strict=True):
        np.testing.assert_allclose(net.priors.numpy(), prior, rtol=1e-5)
    assert set(figures) == {"net1_trusted", "net2_trusted"}
    value.backward()  # there is a gradient even where nothing is trusted
    assert all(bool(torch.isfinite(parameter.grad).all()) for net in heads for parameter in net.parameters() if parameter.grad is not None)
    if small == "none" and tau == 1.0:
        assert float(figures["net1_trusted"]) == 0 and bool((heads[0].priors[1] != linear_heads()[0].priors[1]).any())


def test_targets_and_priors_take_no_gradient():
    heads, batch = linear_heads(), make_batch()
    schedule = Schedule(lr=0.1, rho=0.5, ramp=0.6, pseudo=1.0, agreement=False)
    value, _ = promix_loss(heads, torch.zeros(2, 20, dtype=torch.bool), schedule, replace(C10_SYM50, tau_conf=1.0), Run())(None, batch)
    value.backward()
    for net in heads:  # guessed labels alone: they come from the head, and teach the pseudo head
        assert not net.head.weight.grad.any() and bool(net.pseudo.weight.grad.any()) and not net.priors.requires_grad


def test_priors_stay_distributions():
    net, draw = linear_heads(10)[0], seeded()
    for _ in range(3000):
        net.update_prior(0, torch.randn(8, 10, generator=draw).mul(4).softmax(1), 0.9999)
    before = net.priors.clone()
    net.update_prior(1, torch.empty(0, 10), 0.9999)
    assert torch.equal(net.priors, before)
    assert float((net.priors.sum(1) - 1).abs().max()) < 1e-6 and bool((net.priors > 0).all())


class WithNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, images):
        return self.norm(images).flatten(1)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_running_statistics_move_with_every_pass_in_order(shared, empty):
    heads = [TwoHeads(Classifier(WithNorm(), nn.Linear(32, 3)), seeded(seed)) for seed in (1, 2)]
    batch = make_batch(shared=shared)
    small = (torch.rand(2, 20, generator=seeded(9)) < 0.4) & (not empty)
    schedule = Schedule(lr=0.1, rho=0.5, ramp=1.0, pseudo=0.0, agreement=False)
    promix_loss(heads, small, schedule, replace(C10_SYM50, tau_conf=1.0), Run())(None, batch)
    for k, net in enumerate(heads):
        rows, expected = small[k].nonzero().squeeze(1), nn.BatchNorm2d(2)
        passes = [batch.images, batch.strong]
        for m in range(0 if empty else batch.orders.shape[1]):
            own, (lam, _) = batch.images[rows], batch.lams[k, m].tolist()
            first, second = (own[partners(batch.orders[k, m, kind], rows)] for kind in (0, 1))
            passes += [lam * own + (1 - lam) * first, torch.where(batch.masks[k, m], own, second)]
        for images in passes:
            expected(images)
        assert int(net.backbone.norm.num_batches_tracked) == len(passes) == (2 if empty else 4 if shared else 6)
        torch.testing.assert_close(net.backbone.norm.running_mean, expected.running_mean)
        torch.testing.assert_close(net.backbone.norm.running_var, expected.running_var)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_the_loss_of_the_warm_up(penalty):
    heads, batch, run = linear_heads(), make_batch(), Run()
    value, _ = warm_up_loss([run.forward(net) for net in heads], penalty)(None, batch)
    expected = 0.0
    for net in heads:
        z = net(batch.images).logits.detach().double().numpy()
        log_q = log_softmax(np.maximum(z, 1e-12))
        expected += cross_entropy(z, batch.given_labels.numpy()) + penalty * float((np.exp(log_q) * log_q).sum(1).mean())
    assert value.item() == pytest.approx(expected, rel=1e-5)


# Whole runs.


def new_model(generator):
    return build_model(Description("smallcnn", {"width": 4}, tuple("abcd")), generator)


def pretrain(images=None, run=None, **changes):
    run = run or Run()
    settings = replace(suited_to(Settings(), Situation(4, "sym", 0.2)), **({"epochs": 4, "warm_up": 1, "batch_size": 16} | changes))
    with run.timed("pretraining"):
        return METHODS["promix"].pretrain(images or make_images(), new_model, settings, run)


def same(left, right):
    return all(torch.equal(value, right.state_dict()[name]) for name, value in left.state_dict().items())


def test_a_run():
    images, state = make_images(), torch.random.get_rng_state()
    pixels, labels, run = images.pixels.clone(), images.given_labels.clone(), Run(evaluation=images)
    trained = pretrain(images, run)
    assert torch.equal(images.pixels, pixels) and torch.equal(images.given_labels, labels) and torch.equal(torch.random.get_rng_state(), state)
    assert [type(model) for model in trained.models] == [Classifier] * 2 and trained.kept == "net1"
    assert all(model.description is not None and torch.isfinite(value).all() for model in trained.models for value in model.state_dict().values())
    assert not same(*trained.models)
    margins = trained.history.margins
    assert margins.shape == (4, 60) and bool(torch.isfinite(margins).all())
    assert [line["epoch"] for line in run.lines] == [1, 2, 3, 4] and len(run.accuracies("pretraining")) == 4
    assert {"loss", "net1_trusted", "net2_trusted", "test_accuracy", "test_accuracy_net2", "test_accuracy_ensemble"} <= set(run.lines[-1])
    again, other = pretrain(), pretrain(run=Run(seed=1))
    assert same(trained.models[0], again.models[0]) and same(trained.models[1], again.models[1]) and torch.equal(margins, again.history.margins)
    assert not same(trained.models[0], other.models[0])
    for changes in ({"shared_mixing": True}, {"isotropic_fmix": True}):
        assert not same(pretrain(epochs=2).models[0], pretrain(**changes, epochs=2).models[0])


@pytest.mark.parametrize("stopped_in", [2, 4])
def test_a_stopped_run_goes_on_where_it_was(stopped_in, tmp_path):
    options = {"agreement_after": 2, "tau_conf": 0.4, "epochs": 4, "keep": "better-on-validation"}
    whole = pretrain(run=Run(folder=RunFolder(tmp_path / "whole")), **options)

    class Stopping(Run):
        def log(self, epoch, **values):
            if epoch == stopped_in:
                raise KeyboardInterrupt
            super().log(epoch, **values)

    with pytest.raises(KeyboardInterrupt):
        pretrain(run=Stopping(folder=RunFolder(tmp_path / "cut")), **options)
    again = pretrain(run=Run(folder=RunFolder(tmp_path / "cut")), **options)
    assert again.kept == whole.kept and torch.equal(whole.history.margins, again.history.margins)
    assert same(whole.models[0], again.models[0]) and same(whole.models[1], again.models[1])
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    states = [load_tensors(RunFolder(tmp_path / name).state / "pretraining.safetensors") for name in ("whole", "cut")]
    assert set(states[0]) == set(states[1]) and all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert {"net1.priors", "net2.pseudo.weight"} <= set(states[0])


def test_the_pseudo_heads_wait_for_the_main_phase(tmp_path):
    for epochs in (1, 2):
        pretrain(run=Run(folder=RunFolder(tmp_path / str(epochs))), epochs=epochs)
    first, second = (load_tensors(RunFolder(tmp_path / name).state / "pretraining.safetensors") for name in ("1", "2"))
    fresh = TwoHeads(new_model(Run().generator("weights", 1)), Run().generator("pseudo head", 1))
    assert torch.equal(first["net1.pseudo.weight"], fresh.pseudo.weight) and torch.equal(first["net1.priors"], fresh.priors)
    assert not torch.equal(second["net1.pseudo.weight"], fresh.pseudo.weight) and not torch.equal(second["net1.priors"], fresh.priors)


def test_the_first_step_of_a_late_head_is_that_of_plain_sgd():
    """A momentum of zeros from the start changes no step: the pseudo heads move later than the rest."""
    results = []
    for late in (False, True):
        net = linear_heads()[0]
        optimizer = sgd(net, 0.1)
        if late:
            for parameter in net.parameters():
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        for _ in range(3):
            train_epoch(net, [make_batch()], lambda model, batch: (model(batch.images).logits.square().mean(), {}), optimizer, Run())
        results.append(net)
    assert same(*results)


def test_held_out_samples_are_not_trained_on():
    images, seen = make_images(), []

    class Watching(Run):
        def bar(self, steps, label):
            for batch in steps:
                if label == "loss":
                    seen.extend(batch.index.tolist())
                yield batch

    trained = pretrain(images, Watching(), keep="better-on-validation", held_out=0.2)
    assert len(set(range(60)) - set(seen)) == 12 and len(trained.history.margins[0]) == 60


def test_nothing_to_trust_and_nothing_else():
    for changes in ({"rho_start": 0.0, "rho_end": 0.0, "tau_conf": 1.0}, {"rho_start": 1.0, "rho_end": 1.0}):  # one sample of each class; all of them
        trained = pretrain(**changes, batch_size=8)
        assert all(torch.isfinite(value).all() for model in trained.models for value in model.state_dict().values())


def test_several_processes_are_refused():
    with pytest.raises(InputError, match="promix"):
        pretrain(run=Run(processes=Processes(0, 2)))


def test_it_learns_digits_of_which_two_in_five_may_be_wrong():
    from sklearn.datasets import load_digits

    pictures, truth = load_digits(return_X_y=True)
    pixels = torch.tensor(pictures.reshape(-1, 1, 8, 8) * (255 / 16)).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    truth, draw = torch.tensor(truth), seeded(3)
    noisy = torch.where(torch.rand(len(truth), generator=draw) < 0.4, torch.randint(0, 10, truth.shape, generator=draw), truth)
    names = tuple(map(str, range(10)))
    whole = Images(pixels, noisy, names, [str(row) for row in range(len(truth))], preprocessing=replace(VIEWS, augment="crop"))
    train, test = whole.subset(torch.arange(900)), whole.with_labels(truth).subset(torch.arange(1200, 1797))
    run = Run(evaluation=test)
    settings = replace(suited_to(Settings(), Situation(10, "sym", 0.4)), epochs=7, warm_up=3, batch_size=50)
    with run.timed("pretraining"):
        METHODS["promix"].pretrain(train, lambda draw: build_model(Description("smallcnn", {"width": 8}, names), draw), settings, run)
    assert run.lines[-1]["test_accuracy_ensemble"] > max(0.88, run.lines[2]["test_accuracy_ensemble"])  # epoch 3 ended the warm-up
