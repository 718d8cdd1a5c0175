"""The section of a page on what was bought: pictures, balance, map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpeal_jax.errors import InputError, counted, percent, reason
from cpeal_jax.report import bought, pool_charts, pool_map
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.bought import Balance, Pick
from cpeal_jax.report.measures import rows_of
from cpeal_jax.report.parts import (
  Control,
  Controls,
  Figure,
  Group,
  Heading,
  Section,
  Table,
  Text,
  Thumb,
  Thumbs,
)
from cpeal_jax.report.pictures import Pictures
from cpeal_jax.report.pool_map import PoolMap
from cpeal_jax.storage import files

# So many images of a round, and so many rounds, are shown one by one.
MOST_OF_ROUND = 20
MOST_ROUNDS = 20
MOST_CLASSES = 40
MOST_SUSPECTS = 12


def section(
  arms: Sequence[Arm],
  pictures: Pictures,
  found: PoolMap | str,
  *,
  has_curve: bool,
) -> Section:
  """Returns the section.

  Args:
    arms: of the report.
    pictures: makes the pictures.
    found: the map of the pool, or why there is none.
    has_curve: whether there is an accuracy to draw over the labels.
  """
  names = [arm.name for arm in arms]
  data: dict[str, list[dict[str, Any]]] = {}
  parts: list[Any] = []
  if len(arms) > 1:
    options = [(x, {"arm": x}) for x in names]
    parts.append(Controls([Control("Arm", "select", options=options)]))
  parts += _balance(arms, data)
  parts += _map(arms, found, data, has_curve=has_curve)
  for arm in arms:
    title = f"Picks of {arm.name}, seed {arm.first.seed}"
    rounds = _rounds(arm, pictures, is_open=arm is arms[0])
    if arm is arms[0]:
      parts += [Heading(title if len(arms) > 1 else "Picks"), *rounds]
    else:
      parts.append(Group(title, rounds))
  parts += _pairs(arms, pictures, found)
  parts += _suspects(arms, pictures)
  return Section("bought", "What was bought", parts, data)


def _balance(arms: Sequence[Arm], data: dict[str, list[dict]]) -> list[Any]:
  shares: list[Balance] = [x for arm in arms for x in bought.balance(arm)]
  if not shares:
    return []
  by_class: dict[str, float] = {}
  for share in shares:
    gap = abs(share.bought - (share.predicted or share.true or 0))
    by_class[share.name] = max(by_class.get(share.name, 0), gap)
  most = sorted(by_class, key=by_class.__getitem__, reverse=True)
  shown = {*most[:MOST_CLASSES]}
  classes = [name for name in arms[0].first.classes if name in shown]
  data["balance"] = [x._asdict() for x in shares if x.name in shown]
  note = (
    "Where the bars of a class are alike, what was bought is like the pool."
  )
  if len(by_class) > MOST_CLASSES:
    note += (
      f" Of {len(by_class)} classes, the {MOST_CLASSES} with the largest "
      "differences are shown."
    )
  rows = [
    [f"{x.arm}: {x.name}", *map(_share, (x.bought, x.predicted, x.true))]
    for x in shares
    if x.name in shown
  ]
  head = ["Arm: class", "Bought, %", "Predicted in the pool, %", "True, %"]
  table = Table("Share of each class", head, rows)
  kinds = [
    kind
    for kind in ("bought", "predicted", "true")
    if any(row[kind] is not None for row in data["balance"])
  ]
  chart = pool_charts.balance(arms[0].name, classes, kinds)
  return [Figure("balance", "Balance of the classes", chart, table, note)]


def _share(value: float | None) -> str:
  return "" if value is None else f"{100 * value:.1f}"


def _map(
  arms: Sequence[Arm],
  found: PoolMap | str,
  data: dict[str, list[dict]],
  *,
  has_curve: bool,
) -> list[Any]:
  if isinstance(found, str):
    return [Heading("Map of the pool"), Text(f"There is no map: {found}.")]
  images = arms[0].first.images
  places = {
    id_: (round(float(x), 4), round(float(y), 4))
    for id_, (x, y) in zip(found.ids, found.places, strict=True)
  }
  data["points"] = [
    {"id": id_, "x": x, "y": y, "label": images[id_]["label"]}
    for id_, (x, y) in places.items()
  ]
  data["places"] = []
  for arm in arms:
    run = arm.first
    labeled = [row["labeled"] for row in rows_of(run)]
    for pick in bought.picks(run):
      if pick.id in places:
        x, y = places[pick.id]
        row = {"arm": arm.name, "seed": run.seed, "id": pick.id, "x": x, "y": y}
        row |= {"label": pick.label or pick.source, "round": pick.round}
        data["places"].append(row | {"labeled": labeled[pick.round]})
  name, seed = arms[0].name, arms[0].first.seed
  names = [arm.name for arm in arms]
  rounds = max(arm.rounds for arm in arms)
  longest = next(arm.first for arm in arms if arm.rounds == rounds)
  parts: list[Any] = []
  if rounds > 1:
    control = Control(
      "Bought up to",
      "range",
      "upto",
      high=rounds - 1,
      value=rounds - 1,
      names=[
        f"round {row['round']}, {row['labeled']:g} labels"
        for row in rows_of(longest)
      ],
    )
    parts.append(Controls([control]))
  parts.append(
    Figure(
      "map",
      "Map of the pool",
      pool_charts.pool_map(name, seed, rounds),
      None,
      f"{counted(len(places), 'image')} of the pool by t-SNE of the pretrained "
      "features: neighbors are alike, larger distances mean nothing. Large "
      "dots are what the first seed of the arm bought, by round; the lists "
      "below hold the same.",
    )
  )
  if has_curve:
    parts.append(
      Figure(
        "brush",
        "Mark rounds in the map",
        pool_charts.map_curve(names, name),
        None,
      )
    )
  return parts


def _rounds(arm: Arm, pictures: Pictures, *, is_open: bool) -> list[Any]:
  run = arm.first
  by_round: dict[int, list[Pick]] = {}
  for pick in bought.picks(run):
    by_round.setdefault(pick.round, []).append(pick)
  parts: list[Any] = []
  for round_, members in [*by_round.items()][:MOST_ROUNDS]:
    shown = members[:MOST_OF_ROUND]
    uris = pictures.of(run, [x.id for x in shown])
    thumbs = [_thumb(x, uris.get(x.id, "")) for x in shown]
    more = len(members) - len(shown)
    note = f"{more} more are in rounds/{round_:03d}/selection.csv." * (more > 0)
    heading = f"Round {round_}: {counted(len(members), 'image')}"
    parts.append(
      Thumbs(heading, thumbs, is_open=is_open and round_ == 0, note=note)
    )
  if len(by_round) > MOST_ROUNDS:
    more = counted(
      len(by_round) - MOST_ROUNDS, "later round is", "later rounds are"
    )
    parts.append(Text(f"{more} in the folder `rounds` of the workdir."))
  return parts  # fmt: skip


def _thumb(pick: Pick, uri: str) -> Thumb:
  lines = []
  is_wrong = bool(pick.prediction and pick.label != pick.prediction)
  if pick.prediction:
    sure = "" if pick.confidence is None else f", {percent(pick.confidence)}"
    lines.append(f"taken for {pick.prediction}{sure}")
  if pick.purpose != "train":
    lines.append(pick.purpose)
  if pick.reason:
    lines.append(pick.reason)
  title = pick.label or pick.source.replace("_", " ") or "no answer"
  return Thumb(uri, title, lines, is_wrong and bool(pick.label))


def _pairs(
  arms: Sequence[Arm], pictures: Pictures, found: PoolMap | str
) -> list[Any]:
  if isinstance(found, str):
    return []
  thumbs = []
  for arm in arms:
    pairs = pool_map.similar_pairs(found, arm)
    labels = {x.id: x.label for x in bought.picks(arm.first)}
    for pair in pairs[: max(1, 6 // len(arms))]:
      for id_ in (pair.first, pair.second):
        uri = pictures.of(arm.first, [id_]).get(id_, "")
        lines = [f"{arm.name}, cosine {pair.similarity:.3f}"]
        thumbs.append(Thumb(uri, labels.get(id_) or id_, lines, False))
  if not thumbs:
    return []
  note = (
    "Two by two, the images of one run that look most alike to the pretrained "
    "model. Near-duplicates waste labels; acquisition.min_distance keeps them "
    "out."
  )
  return [Thumbs("The most similar picks", thumbs, note=note)]


def _suspects(arms: Sequence[Arm], pictures: Pictures) -> list[Any]:
  """Returns the labels that `cpeal predict` found suspect, if it was run."""
  parts: list[Any] = []
  for arm in arms:
    for run in arm.runs.values():
      path = Path(run.workdir) / "predictions_files" / "suspects.csv"
      if "://" in run.workdir or not path.is_file():
        continue
      try:
        rows = files.read_csv(path)[:MOST_SUSPECTS]
        sure = [float(row["model_confidence"]) for row in rows]
        if rows and not {"id", "label", "model"} <= rows[0].keys():
          raise KeyError("id, label or model")
      except (InputError, KeyError, ValueError) as error:
        parts.append(Text(f"{path} cannot be read: {reason(error)}."))
        continue
      uris = pictures.of(run, [row["id"] for row in rows])
      thumbs = [
        Thumb(
          uris.get(row["id"], ""),
          f"labeled {row['label']}",
          [f"the model: {row['model']}, {percent(confidence)}"],
          True,
        )
        for row, confidence in zip(rows, sure, strict=True)
      ]
      if thumbs:
        parts.append(Thumbs("Labels to look at again", thumbs))
  if not parts:
    parts.append(
      Text(
        "cpeal predict WORKDIR finds labels that contradict the model; once it "
        "was run, they are shown here."
      )
    )
  return parts
