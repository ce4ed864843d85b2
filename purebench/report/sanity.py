"""Whether an attack was one: the checks of Carlini et al. 2019 (section 5) and Athalye et al. 2018 (section 3.1), judged in words. Pure
functions of the records, whichever run made them; `plan.checks` plans the cells that `run --sanity` adds for them.

Two cells are compared on the images that both have, paired; beyond chance is a 95 % interval that leaves out 0. A check is `passed`,
`doubtful`, `open` (what was seen may be chance, or says nothing for sure) or `not run`."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from purebench import registry, spec
from purebench.errors import UserError
from purebench.plan import checks
from purebench.plan.checks import THROUGH
from purebench.records import store as records
from purebench.records.store import Log, judged
from purebench.report import markdown, metrics, recipe
from purebench.spec import Part, ThreatModel, parse, show, threat

PASSED, DOUBTFUL, OPEN, ABSENT = "passed", "doubtful", "open", "not run"
REACHED = 0.05  # robust accuracy that counts as none
PLATEAU = 0.05  # by which a doubling may still lower it
FEW = "they share fewer than two images"
NOTHING = "no defense was attacked here, so there is nothing to check"
MASKS = ("gradients", "noise", "gradient-free", "transfer")  # checks that a masked gradient fails


@dataclass(frozen=True)
class Verdict:
    """A check, what became of it, why in words, and the robust accuracies behind it by the cells' names."""

    check: str
    verdict: str
    said: str
    numbers: dict[str, float] = field(default_factory=dict)
    masked: bool = False  # so doubtful that there was no gradient to follow
    next: str = ""  # the command that adds the cell which would decide it


@dataclass(frozen=True)
class Judged:
    """A defense under a threat model: `scope`, names of what it was judged on; its `verdicts`; and all of them in one sentence."""

    scope: dict[str, str]
    verdicts: list[Verdict]
    said: str


@dataclass(frozen=True)
class _Gap:
    """Robust accuracy of two cells on the `images` that both have; `low`, `high` of first - second."""

    first: float
    second: float
    low: float
    high: float
    images: int

    @property
    def lower(self) -> bool:
        """Whether the first is lower beyond chance."""
        return self.high < 0

    @property
    def higher(self) -> bool:
        return self.low > 0


# ---- what is compared -----------------------------------------------------------------------------


def judge(logs: Iterable[Log]) -> list[Judged]:
    """Each defense that was attacked, under each threat model of which there is more than one attack, or the only one."""
    groups: dict[str, list[Log]] = defaultdict(list)
    for log in _once(logs):
        if log.cell["defense"] != "none" and metrics.draws(judged(log)):
            groups[_defended(log)].append(log)
    return [found for mates in groups.values() for found in _judged(mates)]


def _once(logs: Iterable[Log]) -> list[Log]:
    """Of copies of a cell the one with the most images."""
    found: dict[str, Log] = {}
    for log in logs:
        if log.id not in found or len(log.images) > len(found[log.id].images):
            found[log.id] = log
    return list(found.values())


def _defended(log: Log) -> str:
    """What the cells of one defense share, its normal draws on or off."""
    cell = log.cell
    parts = records.parts(cell)
    about = {kind: of for kind, of in parts.items() if kind in ("dataset", "classifier", "defense")}
    values = {k: v for k, v in about["defense"]["values"].items() if k != "noise"}
    about["defense"] = {**about["defense"], "values": values}
    # A defense's own score model, which its null control has too: a transfer may name its source's.
    scores = {kind: of for kind, of in parts.items() if kind.partition(".")[0] == "score"}
    names = [cell[key] for key in ("dataset", "subset", "classifier", "seed")] + [cell["score"] if scores else "-"]
    return json.dumps([*names, str(_running(cell)), about, scores], sort_keys=True)


def _running(cell: Mapping[str, Any]) -> Part:
    """The defense, its draws on."""
    part = parse(cell["defense"])
    return Part(part.name, tuple((k, v) for k, v in part.parameters if k != "noise"))


def _is_fixed(log: Log) -> bool:
    return records.values_of(log.cell, "defense").get("noise", 1.0) == 0


def _judged(mates: Sequence[Log]) -> list[Judged]:
    running = [log for log in mates if not _is_fixed(log)]
    attacked = [log for log in running if log.cell["threat"] != "-"]
    under: dict[str, list[Log]] = defaultdict(list)
    for log in attacked:
        under[log.cell["threat"]].append(log)
    several = [text for text, mine in under.items() if len(mine) > 1 and not _is_rung(text, under)]
    wanted = several or list(under)[:1]
    found = []
    for text in wanted:
        here = _Here(threat(text), running, [log for log in mates if _is_fixed(log)])
        verdicts = [check(here) for check in CHECKS]
        # More of what follows nothing finds nothing.
        if any(one.masked for one in verdicts):
            verdicts = [replace(one, next="") for one in verdicts]
        cell = here.logs[0].cell
        names = {key: str(cell[key]) for key in ("dataset", "subset", "classifier", "score")}
        scope = {**names, "defense": str(_running(cell)), "threat": text, "seed": str(cell["seed"])}
        found.append(Judged(scope, verdicts, _sentence(scope["defense"], verdicts)))
    return found


def _is_rung(text: str, under: Mapping[str, Sequence[Log]]) -> bool:
    """Whether a ball was run for the sake of a narrower one: by one attack, where that has several. It is no threat model of its own."""
    own = threat(text)
    names = {other: {metrics.name(log.cell["attack"]) for log in logs} for other, logs in under.items()}
    narrower = [other for other in under if threat(other).norm == own.norm and threat(other).eps < own.eps]
    return len(names[text]) == 1 and any(len(names[other]) > 1 for other in narrower)


class _Here:
    """The cells of a defense: `logs` under the threat model in question, `all` under any, `fixed` without its draws."""

    def __init__(self, limit: ThreatModel, running: Sequence[Log], fixed: Sequence[Log]):
        self.limit, self.all, self.fixed = limit, running, fixed
        self.logs = [log for log in running if log.cell["threat"] == str(limit)]
        self.own = [log for log in self.logs if log.cell["gradient"] in THROUGH]

    def best(self) -> Log | None:
        """The strongest attack through the purifier's own gradient, of those on the most images where several are as low."""
        return min(self.own, key=lambda log: (_robust(log), -len(log.images)), default=None)

    def inert(self) -> bool:
        """Whether no attack takes more than chance would, one that does not follow the purifier's gradient included: in a ball so small
        a gradient cannot be better than none."""
        past = any(_is_free(log) or _is_past(log) for log in self.logs)
        return past and all(_taken(log) < PLATEAU for log in self.logs)


def _taken(log: Log) -> float:
    """Accuracy that an attack takes: on the same images without it minus under it."""
    lines = judged(log)
    return metrics.accuracy(lines, "clean").value - metrics.accuracy(lines).value


def _robust(log: Log) -> float:
    return metrics.accuracy(judged(log)).value


def _gap(first: Log, second: Log) -> _Gap | None:
    """None where they share fewer than two images."""
    a, b = ({line["position"]: line for line in judged(log)} for log in (first, second))
    common = sorted(a.keys() & b.keys())
    if len(common) < 2:
        return None
    shares = [[_right(of[place]) for place in common] for of in (a, b)]
    differences = [x - y for x, y in zip(*shares, strict=True)]
    return _Gap(fmean(shares[0]), fmean(shares[1]), *metrics.paired(differences), len(common))


def _right(line: records.Record) -> float:
    """An image's share of right draws."""
    return line["adversarial"].count(line["label"]) / len(line["adversarial"])


def _name(log: Log) -> str:
    gradient = log.cell["gradient"]
    return log.cell["attack"] + ("" if metrics.natural(log.cell["defense"], log.cell["attack"], gradient) else f" @{gradient}")  # fmt: skip


def _ladder(logs: Iterable[Log], key: str) -> list[Log]:
    """The most cells that differ in one whole-numbered parameter of their attack alone, by it; through the purifier's own gradient."""
    rungs: dict[str, dict[float, Log]] = defaultdict(dict)
    for log in logs:
        values = dict(records.values_of(log.cell, "attack"))
        if key in values and not isinstance(values[key], bool) and isinstance(values[key], int | float):
            rest = {k: v for k, v in values.items() if k != key}
            same = json.dumps([metrics.name(log.cell["attack"]), log.cell["gradient"], rest], sort_keys=True)
            rungs[same][values[key]] = log
    longest = max(rungs.values(), key=len, default={})
    return [longest[at] for at in sorted(longest)]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(gap: _Gap) -> str:
    change, low, high = (100 * v for v in (gap.first - gap.second, gap.low, gap.high))
    return f"{change:+.1f} points (95 %: {low:+.1f} to {high:+.1f}; {gap.images} images)"


# ---- the checks -----------------------------------------------------------------------------------


def _radius(here: _Here) -> Verdict:
    """A wider ball attacks better, and one that holds every image leaves nothing."""
    what = "radius"
    if not here.limit.is_ball:
        return Verdict(what, ABSENT, f"{here.limit} is no ball")
    rungs: dict[str, dict[float, Log]] = defaultdict(dict)
    for log in here.all:
        limit = threat(log.cell["threat"]) if log.cell["threat"] != "-" else None
        if limit and limit.norm == here.limit.norm and limit.eps >= here.limit.eps and log.cell["gradient"] in THROUGH:
            rungs[_name(log)][limit.eps] = log
    ladder = max(rungs.values(), key=len, default={})
    if len(ladder) < 2 or here.limit.eps not in ladder:
        return Verdict(what, ABSENT, "no attack under several radii")
    radii = sorted(ladder)
    values = {f"{here.limit.norm}:{show(eps)}": _robust(ladder[eps]) for eps in radii}
    listed = ", ".join(f"{_percent(value)} at {name}" for name, value in values.items())
    for narrow, wide in itertools.pairwise(radii):
        gap = _gap(ladder[wide], ladder[narrow])
        if gap is None:
            return Verdict(what, ABSENT, f"{FEW}: {listed}", values)
        if gap.higher:
            return Verdict(what, DOUBTFUL, f"a wider ball attacks worse, {_points(gap)}: {listed}", values)
    # Where the widest is not enough for the ladder's own attack, any other through the purifier may be.
    widest = [log for of in rungs.values() for eps, log in of.items() if eps == radii[-1]]
    best = min(widest, key=_robust)
    if best is not ladder[radii[-1]]:
        listed += f"; {_percent(_robust(best))} by {_name(best)}"
        values[f"{here.limit.norm}:{show(radii[-1])}, {_name(best)}"] = _robust(best)
    if _robust(best) <= REACHED:
        return Verdict(what, PASSED, listed, values)
    size = _whole(here.limit, best)
    held = size is not None and radii[-1] >= size
    said = f"no ball breaks it: {listed}; the attack is too weak, or its gradient is masked"
    verdict = DOUBTFUL if held or radii[-1] >= 4 * here.limit.eps else OPEN
    if held:
        return Verdict(what, verdict, said, values, next=_more(best, "steps"))
    wider = 2 * radii[-1] if size is None else min(2 * radii[-1], size)
    farther = str(replace(here.limit, eps=wider))
    return Verdict(what, verdict, said, values, next=recipe.command(ladder[radii[-1]], limit=farther))


def _whole(limit: ThreatModel, log: Log) -> float | None:
    """The radius of the ball that holds every image; None where the dataset is not known here."""
    name = metrics.name(log.cell["dataset"])
    shape = registry.info("dataset", name).get("shape") if name in registry.names("dataset") else None
    if limit.norm == "Linf" or shape:
        return checks.whole(limit.norm, shape or ())
    return None


def _more(log: Log, key: str) -> str:
    """The command that adds the next rung: twice as many of what its attack counts. Empty where it does not count them."""
    count = records.values_of(log.cell, "attack").get(key)
    return recipe.command(log, attack={key: 2 * count}) if isinstance(count, int) else ""


def _plateau(here: _Here, key: str, what: str) -> Verdict:
    """Doubled until nothing more is gained."""
    ladder = _ladder(here.own, key)
    if len(ladder) < 2:
        return Verdict(what, ABSENT, f"no attack at several `{key}`")
    at = [records.values_of(log.cell, "attack")[key] for log in ladder]
    values = {f"{key}={count}": _robust(log) for count, log in zip(at, ladder, strict=True)}
    listed = ", ".join(f"{_percent(value)} at {name}" for name, value in values.items())
    # From one to many is a check of its own.
    pairs = [
        (first, second)
        for first, second, count in zip(ladder, ladder[1:], at, strict=False)
        if count > 1 or key != "steps"
    ]
    for fewer, more in pairs:
        gap = _gap(more, fewer)
        if gap and gap.higher and gap.first - gap.second >= PLATEAU:
            return Verdict(what, DOUBTFUL, f"more {what} attack worse, {_points(gap)}: {listed}", values)
    gap = _gap(ladder[-1], ladder[-2])
    if gap is None:
        return Verdict(what, ABSENT, f"{FEW}: {listed}", values)
    if gap.second - gap.first >= PLATEAU:
        said = f"no plateau: the last doubling still takes points, {_points(gap)}: {listed}; attack with more {what}"
        return Verdict(what, DOUBTFUL if gap.lower else OPEN, said, values, next=_more(ladder[-1], key))
    # A level line far above nothing says that nothing was followed, and not that all was found.
    if key == "steps" and _robust(ladder[0]) - _robust(ladder[-1]) < PLATEAU and gap.first > REACHED:
        return Verdict(what, OPEN, f"steps take nothing: {listed}", values)
    if gap.first > REACHED and _taken(ladder[-1]) < PLATEAU:
        return Verdict(what, OPEN, f"{what} take nothing: {listed}", values)
    return Verdict(what, PASSED, f"a plateau: {listed}", values)


def _steps(here: _Here) -> Verdict:
    return _plateau(here, "steps", "steps")


def _eot(here: _Here) -> Verdict:
    return _plateau(here, "eot", "draws")


def _one_step(here: _Here) -> Verdict:
    """Many steps attack better than one."""
    what = "one step"
    ladder = _ladder(here.own, "steps")
    if len(ladder) < 2 or records.values_of(ladder[0].cell, "attack")["steps"] != 1:
        return Verdict(what, ABSENT, "no attack of one step beside one of many")
    many = min(ladder[1:], key=_robust)
    return _beats(here, what, many, ladder[0], "many steps attack no better than one", "many steps against one")


def _noise(here: _Here) -> Verdict:
    """A gradient attacks better than a random point of the ball."""
    control = next((log for log in here.logs if log.cell["attack"] == "noise"), None)
    best = here.best()
    if not control or not best:
        return Verdict("noise", ABSENT, "no control `noise` beside an attack by gradient")
    found = _beats(
        here, "noise", best, control, "the gradient attacks no better than noise", f"{_name(best)} against noise"
    )
    return replace(found, masked=found.verdict == DOUBTFUL)


def _beats(here: _Here, what: str, better: Log, worse: Log, why: str, between: str) -> Verdict:
    """The first has to be lower."""
    gap = _gap(better, worse)
    values = {_name(better): _robust(better), _name(worse): _robust(worse)}
    if gap is None:
        return Verdict(what, ABSENT, FEW, values)
    listed = f"{between}: {_percent(gap.first)} and {_percent(gap.second)}, {_points(gap)}"
    if gap.lower:
        return Verdict(what, PASSED, listed, values)
    # Where both leave nothing there is nothing to be better at.
    if gap.first <= REACHED and gap.second <= REACHED:
        return Verdict(what, PASSED, f"nothing is left to take: {listed}", values)
    if here.inert():
        said = f"nothing that was tried takes anything, with the gradient or without: the ball may be too small to tell; {listed}"
        return Verdict(what, OPEN, said, values)
    return Verdict(what, DOUBTFUL if gap.first >= gap.second or gap.higher else OPEN, f"{why}: {listed}", values)


def _gradients(here: _Here) -> Verdict:
    """Gradients were there to be followed."""
    shares = {_name(log): share.value for log in here.own if (share := metrics.masked(judged(log)))}
    if not shares:
        return Verdict("gradients", ABSENT, "no attack through the purifier's own gradient recorded what it was like")
    worst = max(shares, key=shares.__getitem__)
    blind = f"zero, or not finite, on {_percent(shares[worst])} % of the images wherever they were right ({worst})"
    if shares[worst] >= metrics.MASKED:
        return Verdict("gradients", DOUBTFUL, f"the gradient is {blind}", shares, masked=True)
    return Verdict("gradients", PASSED, f"{blind}" if shares[worst] else "never zero where it was needed", shares)


def _is_free(log: Log) -> bool:
    """Whether its attack asks the defense, and no gradient."""
    name = metrics.name(log.cell["attack"])
    return log.cell["gradient"] == "-" and name not in (*spec.CONTROLS, "transfer", "transfer-pgd", "given")


def _gradient_free(here: _Here) -> Verdict:
    rivals = [log for log in here.logs if _is_free(log)]
    return _outdone(here, "gradient-free", rivals, "no attack without a gradient, such as `square-eot`")


def _is_past(log: Log) -> bool:
    """Whether its attack follows a gradient, and not the purifier's; or its images were made elsewhere."""
    names = ("transfer", "transfer-pgd", "given")
    if metrics.control(log.cell["attack"]):
        return False
    return metrics.name(log.cell["attack"]) in names or log.cell["gradient"] not in (*THROUGH, "-")


def _transfer(here: _Here) -> Verdict:
    rivals = [log for log in here.logs if _is_past(log)]
    return _outdone(here, "transfer", rivals, "no transfer, and no attack past the purifier")


def _outdone(here: _Here, what: str, rivals: Sequence[Log], absent: str) -> Verdict:
    """What does not follow the purifier's gradient is not stronger than what does."""
    best = here.best()
    if not best or not rivals:
        return Verdict(what, ABSENT, absent if best else "no attack through the purifier's own gradient")
    values = {_name(log): _robust(log) for log in (best, *rivals)}
    gaps = {_name(log): gap for log in rivals if (gap := _gap(log, best))}
    if not gaps:
        return Verdict(what, ABSENT, FEW, values)
    strongest = min(gaps, key=lambda name: gaps[name].first - gaps[name].second)
    gap = gaps[strongest]
    listed = f"{strongest} leaves {_percent(gap.first)}, {_name(best)} {_percent(gap.second)}, {_points(gap)}"
    clear = gap.second - gap.first >= PLATEAU
    if gap.lower and clear:
        said = f"an attack that does not follow the gradient is stronger: {listed}"
        return Verdict(what, DOUBTFUL, said, values, masked=gap.first < gap.second / 2)
    return Verdict(what, OPEN if clear or gap.lower else PASSED, listed, values)


def _fixed(here: _Here) -> Verdict:
    """Without the draws there is nothing to average: the same attack is easier."""
    what = "fixed noise"
    for log in here.fixed:
        twin = next((other for other in here.logs if _name(other) == _name(log)), None)
        if log.cell["threat"] != str(here.limit) or twin is None:
            continue
        if (gap := _gap(log, twin)) is None:
            return Verdict(what, ABSENT, FEW)
        clean = [metrics.accuracy(judged(one), "clean").value for one in (log, twin)]
        values = {"draws off": gap.first, "draws on": gap.second, "clean, off": clean[0], "clean, on": clean[1]}
        ways = zip(("off", "on"), (gap.first, gap.second), clean, strict=True)
        off, on = (f"{_percent(left)} with the draws {way} (clean {_percent(was)})" for way, left, was in ways)
        listed = f"{_name(log)}: {off}, {on}"
        if gap.higher:
            return Verdict(what, OPEN, f"the draws cost more than the attack gains by them: {listed}", values)
        rests = f"; without them {_points(gap)}" if gap.lower else ""
        return Verdict(what, PASSED, listed + rests, values)
    return Verdict(what, ABSENT, "the defense has no normal draws, or no cell has them off (`NAME:noise=0`)")


CHECKS = (_gradients, _noise, _one_step, _steps, _eot, _radius, _transfer, _gradient_free, _fixed)


def _sentence(defense: str, verdicts: Sequence[Verdict]) -> str:
    doubtful = [one.check for one in verdicts if one.verdict == DOUBTFUL]
    masks = [check for check in doubtful if check in MASKS]
    absent = [one.check for one in verdicts if one.verdict == ABSENT]
    undecided = [one.check for one in verdicts if one.verdict == OPEN]
    missing = f" Open: {', '.join(undecided)}." if undecided else ""
    missing += f" Not run: {', '.join(absent)}." if absent else ""
    named = ", ".join(masks)
    if any(one.masked for one in verdicts):
        return f"The gradient of `{defense}` is masked ({named}): what it withstands is no evidence of robustness.{missing}"
    if masks:
        why = "what does not follow it is stronger, and robustness is overstated"
        return f"The gradient of `{defense}` misleads ({named}): {why}.{missing}"
    if doubtful:
        return f"The attack on `{defense}` is weaker than it could be ({', '.join(doubtful)}): robustness is overstated.{missing}"
    if len(absent) == len(verdicts):
        return f"Nothing was checked on `{defense}`: `purebench run --sanity` does."
    return f"No check speaks against the attack on `{defense}`.{missing}"


# ---- words ----------------------------------------------------------------------------------------


def _cell(said: str) -> str:
    return markdown.prose(said).replace("|", "\\|")


def text(found: Sequence[Judged]) -> str:
    """Markdown that ends in a newline."""
    lines: list[str] = []
    for one in found:
        scope = one.scope
        title = f"{scope['defense']}, {scope['dataset']}, {scope['threat']}"
        lines += [f"### Sanity: {markdown.escape(title)}", ""]
        seed = f", seed {scope['seed']}" if scope["seed"] != "0" else ""
        lines += [f"Robust accuracy in %, of the images that both cells have{seed}.", ""]
        rows = [[of.check, of.verdict, _cell(of.said)] for of in one.verdicts]
        lines += [*markdown.table(["check", "verdict", "numbers"], rows, left=3), "", f"**{markdown.prose(one.said)}**", ""]  # fmt: skip
        rungs = [f"- {of.check}: `{of.next}`" for of in one.verdicts if of.next]
        if rungs:
            lines += ["What would go on, and is judged as the next rung by `purebench table --sanity`:", "", *rungs, ""]
    return "\n".join(lines)


def render(logs: Iterable[Log], format: str = "md") -> str:
    """The checks of records as text. Raises UserError where no defense was attacked, and for a format that they do not have."""
    if format not in ("md", "json"):
        raise UserError(f"the checks are words, and have no {format}", "use md or json")
    found = judge(logs)
    if not found:
        hint = "`purebench run --sanity` runs the checks"
        raise UserError(NOTHING, hint)
    return json.dumps([asdict(one) for one in found], indent=1) if format == "json" else text(found)
