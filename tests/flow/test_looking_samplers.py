"""Samplers that look at the posterior, on small random models: prompts, batches, frames, words, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow
from dfm_jax.flow.samplers.grid import uniform_grid

V, L = 6, 10
MASK, UNIFORM = flow.MaskSource(V), flow.UniformSource(V)
TABLE = 1.5 * jax.random.normal(jax.random.key(3), (V + 1, V + 1, V + 1))
PATH = flow.MixtureDiscreteProbPath(flow.PolynomialConvexScheduler(n=2.0))
FIXED = jnp.zeros((5, L), bool).at[:, :3].set(True).at[0, 7].set(True).at[4].set(True)


def model(x, t):
    return TABLE[x, jnp.roll(x, 1, 1)] * (1 + t[:, None, None])


def uniform_model(x, t):
    return model(x, t)[..., :V]


def start(source=MASK, rows=5):
    return jnp.where(FIXED[:rows], 2, source.sample(jax.random.key(1), (rows, L)))


def sample(step, rows=5, source=MASK, **options):
    of_solver = {name: options.pop(name) for name in ("corrector", "guidance", "scheduler") if name in options}
    solver = flow.Solver(model if source is MASK else uniform_model, PATH, source, step=step, **of_solver)
    keys = jax.random.split(jax.random.key(7), 5)[:rows]
    return solver.sample(keys, start(source, rows), fixed=FIXED[:rows], **options)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("step", "corrector"),
    [
        ("unmask:order=entropy,bound=1.5", "gibbs:sites=2"),
        ("unmask:order=margin,noise=0.5", None),
        ("unmask:order=random,count=2,blocks=4", "resample:informed=1"),
    ],
)
def test_prompts_stay_and_a_sequence_does_not_depend_on_its_batch(step, corrector):
    x, evaluations = sample(step, steps=4, corrector=corrector, return_evaluations=True)
    assert (np.asarray(x) != V).all() and (np.where(FIXED, x, 2) == 2).all()
    assert evaluations.trunk[4] == 0 and evaluations.head_rows[4] == 0  # nothing was free
    alone, of_alone = sample(step, 2, steps=4, corrector=corrector, return_evaluations=True)
    np.testing.assert_array_equal(alone, x[:2])
    np.testing.assert_array_equal(of_alone.trunk, evaluations.trunk[:2])


def test_by_the_schedule_as_many_stay_as_it_says():
    """floor(F sigma_s + 1/2) of the F free positions; one evaluation for each step that reveals something."""
    times = np.linspace(0, 1, 7)
    frames, evaluations = sample("unmask", steps=6, return_intermediates=times.tolist(), return_evaluations=True)
    free = (~np.asarray(FIXED)).sum(-1)
    stay = np.floor(free * (1 - times[:, None] ** 2) + 0.5).astype(int)
    masked = (np.asarray(frames) == V).sum(-1)
    np.testing.assert_array_equal(masked, stay)
    np.testing.assert_array_equal(evaluations.trunk, (np.diff(stay, axis=0) < 0).sum(0))


def test_with_count_frames_go_by_the_share_that_is_revealed():
    shares = [0.0, 0.3, 0.65, 1.0]
    frames, evaluations = sample("unmask:count=2", return_intermediates=shares, return_evaluations=True)
    free = (~np.asarray(FIXED)).sum(-1)[:4]
    revealed = free - (np.asarray(frames) == V).sum(-1)[:, :4]
    for row, share in zip(revealed, shares, strict=True):
        expected = np.where(share == 1, free, 2 * np.floor(share * free / 2 + 1e-6))
        np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(evaluations.trunk[:4], -(-free // 2))


def test_blocks_are_revealed_one_after_the_other():
    frames = np.asarray(sample("unmask:count=1,blocks=5", 4, return_intermediates=np.linspace(0, 1, 11).tolist()))
    masked = (frames == V) & ~np.asarray(FIXED[:4])
    for state in masked.reshape(-1, L):
        assert not state[:5].any() or (state[5:] == ~np.asarray(FIXED[1, 5:])).sum() >= 4


@pytest.mark.slow
def test_the_network_is_told_the_share_that_is_revealed():
    """With count: kappa^{-1}(1 - n / F) on the training's schedule. The masks of a corrector's round count too."""
    seen = []

    def told(x, t):
        jax.debug.callback(lambda x, t: seen.append((np.array(x), np.array(t))), x, t, ordered=True)
        return model(x, t)

    solver = flow.Solver(
        told, PATH, MASK, step="unmask:count=2", corrector="gibbs:sites=1", scheduler=flow.SineScheduler()
    )
    solver.sample(jax.random.key(0), start()[:4], fixed=FIXED[:4]).block_until_ready()
    jax.effects_barrier()
    free = (~np.asarray(FIXED[:4])).sum(-1)
    assert len(seen) == 2 * 4 - 1
    for x, t in seen[:-1]:
        active = (x == V).any(-1)
        share = 1 - (x == V).sum(-1) / free
        np.testing.assert_allclose(t[active], np.sqrt(share)[active], atol=1e-6)


@pytest.mark.slow
def test_a_corrector_under_unmask_keeps_the_pattern_of_masks():
    """Rounds change revealed tokens only, and none is masked after them."""
    shares = np.linspace(0, 1, 8).tolist()
    plain = np.asarray(sample("unmask:order=random,count=1", 4, return_intermediates=shares))
    solver = flow.Solver(model, PATH, MASK, step="unmask:order=random,count=1", corrector="gibbs:rate=1,rounds=2")
    keys = jax.random.split(jax.random.key(7), 5)[:4]
    corrected, evaluations = solver.sample(
        keys, start()[:4], fixed=FIXED[:4], return_intermediates=shares, return_evaluations=True
    )
    corrected = np.asarray(corrected)
    np.testing.assert_array_equal((plain == V).sum(-1), (corrected == V).sum(-1))
    assert (plain[-1] != corrected[-1]).any()
    free = (~np.asarray(FIXED[:4])).sum(-1)
    np.testing.assert_array_equal(evaluations.trunk, free + 2 * (free - 1))


@pytest.mark.slow
def test_correctors_act_in_their_interval():
    """Six steps to kappa = (j / 6)^2: after all but the last; in [1/4, 1/2]; with kappa_max = 1 also at the end."""

    def head_rows(corrector):
        return sample("exact", 4, steps=6, corrector=corrector, return_evaluations=True)[1].head_rows

    one = head_rows("gibbs:rate=0")
    assert (np.asarray(one) == (~np.asarray(FIXED[:4])).sum(-1)).all()
    for interval, times in (("", 5), (",kappa_min=0.25,kappa_max=0.5", 2), (",kappa_min=0.6,kappa_max=1", 2)):
        other = head_rows(f"gibbs:informed=1{interval}")
        found = np.asarray(other - one)
        assert (found <= times).all() and found.sum() > 2 * times - 4, (interval, found)


def test_informed_sites_are_where_the_token_was_least_probable():
    """Tokens of every confidence; noise off: the one of least log-probability at its revealing is drawn again."""
    wanted = np.arange(L) % V  # position l reveals the token l % V, of which the model is surer the larger it is
    logits = jnp.asarray((wanted[:, None] + 1.0) * (np.arange(V + 1) == wanted[:, None]), jnp.float32)
    seen = []

    def doubtful(x, t):
        jax.debug.callback(lambda x: seen.append(np.array(x)), x, ordered=True)
        return jnp.broadcast_to(logits[None], (*x.shape, V + 1))

    greedy = flow.from_logits(doubtful, temperature=0.0)
    solver = flow.Solver(greedy, PATH, MASK, step="unmask:count=5", corrector="gibbs:informed=1,noise=0")
    solver.sample(jax.random.key(0), jnp.full((1, L), V)).block_until_ready()
    jax.effects_barrier()
    # First the five surest, at positions 5, 4, 3, 9 and 2; the last of them is the least probable.
    assert len(seen) == 3
    assert set(np.flatnonzero(seen[1][0] != V)) == {5, 4, 3, 9}


@pytest.mark.slow
def test_guidance_sharpens_what_the_prompt_says():
    """Two tokens, the first given: p(b | a)^gamma p(b)^(1 - gamma), from 20 000 draws."""
    joint = np.array([[6, 1, 2], [1, 5, 3], [2, 4, 8]], float) / 32

    def exact(x, t):
        given, alone = jnp.asarray(np.log(joint / joint.sum(1, keepdims=True))), jnp.asarray(np.log(joint.sum(0)))
        second = jnp.where((x[:, 0] == 3)[:, None], alone[None], given[jnp.minimum(x[:, 0], 2)])
        logits = jnp.stack([jnp.zeros_like(second), second], 1).astype(jnp.float32)
        return jnp.pad(logits, ((0, 0), (0, 0), (0, 1)))

    source, n = flow.MaskSource(3), 20_000
    x = jnp.tile(jnp.array([[1, 3]]), (n, 1))
    fixed = jnp.tile(jnp.array([[True, False]]), (n, 1))
    for guidance, gamma in ((2.5, 2.5), (lambda kappa: 1.0 + kappa, 1.0), ("linear:3,1", 3.0), (1.0, 1.0)):
        solver = flow.Solver(exact, PATH, source, guidance=guidance, group_size=1 << 14)
        drawn, evaluations = solver.sample(jax.random.key(0), x, steps=1, fixed=fixed, return_evaluations=True)
        law = joint[1] / joint[1].sum()
        law = law**gamma * joint.sum(0) ** (1 - gamma)
        law /= law.sum()
        share = np.bincount(np.asarray(drawn[:, 1]), minlength=4)[:3] / n
        assert (np.abs(share - law) < 4.5 * np.sqrt(law * (1 - law) / n)).all(), (guidance, share, law)
        assert (np.asarray(evaluations.trunk) == (1 if guidance == 1.0 else 2)).all()


@pytest.mark.slow
def test_a_logit_of_minus_infinity_stays_so_under_guidance():
    def never(x, t):
        return model(x, t).at[..., 1].set(-jnp.inf)

    x = flow.Solver(never, PATH, MASK, guidance=3.0).sample(jax.random.key(0), start(), steps=4, fixed=FIXED)
    assert not ((np.asarray(x) == 1) & ~np.asarray(FIXED)).any() and (np.asarray(x) < V).all()


class DrawsOnly:
    """A user's denoiser that says nothing but draws."""

    def features(self, x, t):
        return model(x, t)

    def draw(self, keys, features, x_t, t):
        return flow.from_logits(lambda x, t: x).draw(keys, features, x_t, t)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": "unmask:order=best"}, "order = 'best': expected confidence, margin, entropy, random, drawn"),
        ({"step": "unmask:count=0"}, "count = 0: expected an integer of 1 or more"),
        ({"step": "unmask:count=1.5"}, "count = 1.5: expected an integer"),
        ({"step": "unmask:bound=-0.1"}, "bound = -0.1: expected a number of nats"),
        ({"step": "unmask:bound=1,count=2"}, "count = 2, bound = 1: expected one of them"),
        ({"step": "unmask:order=random,noise=1"}, "noise = 1: expected 0 with order = 'random'"),
        ({"step": "unmask:gamma=1"}, "expected options"),
        ({"step": "unmask", "source": UNIFORM}, "step = 'unmask': expected a mask source, not UniformSource"),
        ({"step": "unmask", "path": flow.ThreeTermProbPath(flow.CondOTScheduler(), V)}, "keeps revealed tokens"),
        ({"step": "unmask", "model": DrawsOnly()}, "model = DrawsOnly: expected a denoiser with the method `answer`"),
        ({"corrector": "gibs"}, "corrector = 'gibs': expected gibbs, resample, forward_backward"),
        ({"corrector": "gibbs:rate=1.5"}, r"rate = 1.5: expected a number in \[0, 1\]"),
        ({"corrector": "gibbs:sites=0"}, "sites = 0: expected an integer of 1 or more"),
        ({"corrector": "resample:sites=1,rate=0.1"}, "sites = 1, rate = 0.1: expected one of sites, rate, informed"),
        ({"corrector": "gibbs:rounds=0"}, "rounds = 0: expected an integer of 1 or more"),
        ({"corrector": "gibbs:noise=1"}, "noise = 1: expected a number of 0 or more, below 1e.09, with informed"),
        ({"corrector": "gibbs:kappa_min=0.5,kappa_max=0.2"}, "expected 0 <= kappa_min <= kappa_max <= 1"),
        ({"corrector": "gibbs:kappa_max=1", "source": UNIFORM}, "kappa_max = 1: expected below 1"),
        ({"corrector": "resample:informed=1"}, "expected corrector = 'gibbs' with a mask source"),
        ({"corrector": "gibbs", "source": flow.CategoricalSource([0.5, 0.5, 0, 0, 0, 0])}, "p > 0 at every token"),
        ({"corrector": "gibbs", "path": flow.GenMD4ProbPath(flow.CondOTScheduler(), V)}, "expected a path with one"),
        ({"corrector": "forward_backward", "step": "unmask"}, "expected gibbs or resample with step = 'unmask'"),
        ({"corrector": "gibbs", "step": "first_hitting"}, "corrector = 'gibbs': expected none with step"),
        ({"corrector": "gibbs", "source": UNIFORM, "model": DrawsOnly()}, "needs LEAVE_ONE_OUT"),
        ({"guidance": 2.0, "source": UNIFORM}, "guidance = 2.0: expected a mask source"),
        ({"guidance": -1.0}, "guidance = -1.0: expected a finite number of 0 or more"),
        ({"guidance": "often"}, "guidance = 'often': expected a number of 0 or more, or linear:START,END"),
        ({"guidance": None}, "guidance = None: expected a number of 0 or more"),
        ({"guidance": "linear:-1,2"}, "start = -1.0: expected a finite number of 0 or more"),
        ({"guidance": 1e39}, "guidance = 1e\\+39: expected a finite number of 0 or more, below 1e\\+06"),
        ({"guidance": lambda kappa: -kappa}, "guidance = -1.0: expected a finite number of 0 or more"),
        ({"guidance": lambda kappa: jnp.ones(3)}, r"guidance of shape \(3,\) at kappa \(33,\): expected that of kappa"),
        ({"step": "unmask:count=99999999999"}, "count = 99999999999: expected an integer of 1 or more"),
        ({"step": "unmask:blocks=2147483648"}, "blocks = 2147483648: expected an integer of 1 or more"),
        ({"step": "unmask:noise=inf"}, "noise = inf: expected a number of 0 or more, below 1e\\+09"),
        ({"step": "unmask:count=1,count=2"}, "step option 'count=2': expected count once"),
        (
            {"path": flow.ThreeTermProbPath(flow.CondOTScheduler(), V), "source": UNIFORM},
            "source = UniformSource: expect",
        ),
        ({"step": 3}, "step = 3: expected a name, or a step such as"),
        ({"step": flow.Unmask}, "step = <class '.*Unmask'>: expected a name, or a step such as"),
        ({"corrector": "gibbs:sites=99999999999"}, "sites = 99999999999: expected an integer of 1 or more"),
        ({"corrector": "gibbs:informed=1,noise=inf"}, "noise = inf: expected a number of 0 or more, below"),
        ({"corrector": 3}, "corrector = 3: expected a name, or a corrector such as"),
        ({"corrector": flow.Gibbs}, "corrector = <class '.*Gibbs'>: expected a name, or a corrector such as"),
    ],
)
def test_bad_input_is_one_line_before_any_work(options, message):
    made = {"model": model, "path": PATH, "source": MASK, **options}
    with pytest.raises(ValueError, match=message):
        flow.Solver(made.pop("model"), made.pop("path"), made.pop("source"), **made)


def test_bad_input_of_a_call():
    with pytest.raises(ValueError, match=r"guidance = 2.0: expected a prompt or gaps"):
        flow.Solver(model, PATH, MASK, guidance=2.0).sample(jax.random.key(0), start(), steps=2)
    with pytest.raises(ValueError, match=r"time_grid to 0.5: expected 1 with count or bound"):
        sample("unmask:count=1", time_grid=(0.0, 0.5))
    with pytest.raises(ValueError, match=r"div_free = 1.0: expected 0 unless"):
        sample("unmask:count=1", steps=2, div_free=1.0)
    solver, key = flow.Solver(model, PATH, MASK), jax.random.key(0)
    for shape in ((0, L), (1, 0)):
        with pytest.raises(ValueError, match=r"^x_init of shape .*, int32: expected integers \(B, L\)"):
            solver.sample(key, jnp.zeros(shape, jnp.int32), steps=2)
    with pytest.raises(ValueError, match=r"^key = 0: expected jax.random.key"):
        solver.sample(0, start(), steps=2)  # pyright: ignore[reportArgumentType]
    for steps in (float("nan"), [2], "4"):
        with pytest.raises(ValueError, match=r"^steps = .*: expected an integer of 1 or more"):
            solver.sample(key, start(), steps=steps)


@pytest.mark.slow
def test_numbers_lists_and_flags_of_numpy_are_taken():
    """Counts of numpy; fixed positions and x_init as lists; numpy's True and one time for the frames."""
    assert flow.Unmask(count=np.int64(2)) == flow.Unmask(count=2) and flow.Gibbs(sites=np.int64(2)).sites == 2  # pyright: ignore
    solver = flow.Solver(model, PATH, MASK, step="unmask:order=random,count=4")
    key, x = jax.random.key(0), solver.sample(jax.random.key(0), start(), fixed=FIXED)
    np.testing.assert_array_equal(solver.sample(key, start().tolist(), fixed=FIXED.tolist()), x)  # pyright: ignore
    frames = solver.sample(key, start(), fixed=FIXED, return_intermediates=np.True_)  # pyright: ignore
    np.testing.assert_array_equal(frames, [start(), x])
    (one,) = solver.sample(key, start(), fixed=FIXED, return_intermediates=1.0)  # pyright: ignore
    np.testing.assert_array_equal(one, x)


@pytest.mark.parametrize(
    ("step", "corrector"),
    [
        ("unmask:count=2", "gibbs:rate=0.5"),
        ("exact", "resample:informed=1"),
        ("psi", "forward_backward"),
        ("thinning", None),
    ],
)
def test_a_call_like_an_earlier_one_compiles_nothing(step, corrector):
    """All that is no array compares equal from call to call: jit takes it for the program's own."""
    source = UNIFORM if corrector == "resample:informed=1" else MASK
    guidance = 1.0 if source is UNIFORM else "linear:1,2"
    solver = flow.Solver(model, PATH, source, step=step, corrector=corrector, guidance=guidance)
    moves = [solver._trajectory(grid, 0.0, L).moves for grid in (uniform_grid(4), uniform_grid(4))]
    assert jax.tree.structure(moves[0]) == jax.tree.structure(moves[1])


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("corrector", ["gibbs:sites=2", "gibbs:informed=1", "resample:informed=1", "forward_backward"])
def test_a_solver_may_be_made_inside_a_program(corrector):
    """As generation makes it, where a source's law is the program's argument. It is traced, not compiled."""

    def generate(source, x):
        solver = flow.Solver(uniform_model, PATH, source, corrector=corrector)
        return solver.sample(jax.random.key(0), x, steps=3, draft=2)

    for source in (UNIFORM, flow.CategoricalSource(np.arange(1.0, V + 1) / 21)):
        assert jax.eval_shape(generate, source, start(source)).shape == (5, L)


@pytest.mark.slow
def test_a_chain_is_guided_too():
    """first_hitting with gamma = 1 written as a function is the plain one; with another gamma two runs an event."""
    keys = jax.random.split(jax.random.key(7), 5)
    plain, guided, sharp = (
        flow.Solver(model, PATH, MASK, step="first_hitting", guidance=guidance).sample(
            keys, start(), steps=1, fixed=FIXED, return_evaluations=True
        )
        for guidance in (1.0, lambda kappa: 1.0 + 0.0 * kappa, 4.0)
    )
    np.testing.assert_array_equal(plain[0], guided[0])
    assert (plain[0] != sharp[0]).any()
    np.testing.assert_array_equal(2 * plain[1].trunk, guided[1].trunk)
