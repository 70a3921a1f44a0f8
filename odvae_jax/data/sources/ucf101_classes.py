"""The classes of UCF101, in the order that its labels have here whatever they are read from."""

from __future__ import annotations

_NAMES = """
ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch
Basketball BasketballDunk BenchPress Biking Billiards BlowDryHair BlowingCandles BodyWeightSquats
Bowling BoxingPunchingBag BoxingSpeedBag BreastStroke BrushingTeeth CleanAndJerk CliffDiving
CricketBowling CricketShot CuttingInKitchen Diving Drumming Fencing FieldHockeyPenalty
FloorGymnastics FrisbeeCatch FrontCrawl GolfSwing Haircut HammerThrow Hammering HandstandPushups
HandstandWalking HeadMassage HighJump HorseRace HorseRiding HulaHoop IceDancing JavelinThrow
JugglingBalls JumpRope JumpingJack Kayaking Knitting LongJump Lunges MilitaryParade Mixing
MoppingFloor Nunchucks ParallelBars PizzaTossing PlayingCello PlayingDaf PlayingDhol PlayingFlute
PlayingGuitar PlayingPiano PlayingSitar PlayingTabla PlayingViolin PoleVault PommelHorse PullUps
Punch PushUps Rafting RockClimbingIndoor RopeClimbing Rowing SalsaSpin ShavingBeard Shotput
SkateBoarding Skiing Skijet SkyDiving SoccerJuggling SoccerPenalty StillRings SumoWrestling
Surfing Swing TableTennisShot TaiChi TennisSwing ThrowDiscus TrampolineJumping Typing UnevenBars
VolleyballSpiking WalkingWithDog WallPushups WritingOnBoard YoYo
"""
CLASSES = tuple(_NAMES.split())
"""The names of the 101 classes, in order of code points; a class's place here is its label.

It is the order of the class folders, in which the released Latte counts labels. In the list that
comes with the dataset, Hammering is before HammerThrow, and JumpingJack before JumpRope."""
# HandstandPushups is spelled HandStandPushups here and there in the dataset.
_NUMBERS = {name.lower(): number for number, name in enumerate(CLASSES)}


def class_columns(name: str) -> dict[str, int | str]:
    """Returns the columns of a video of a class: `label`, the number, and `class`, the name.

    Args:
      name: the name of the class, in any case of letters.

    Raises:
      KeyError: if UCF101 has no such class.
    """
    label = _NUMBERS[name.lower()]
    return {"label": label, "class": CLASSES[label]}
