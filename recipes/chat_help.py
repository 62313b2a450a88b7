"""Where people find help, and what a research model is: shown at the start and when a message signals acute risk.

The numbers were right when this was written (2026). Whoever deploys a chat checks them for its country.
"""

from __future__ import annotations

import re

from psychecore.curate.risk import find_risk

NOTICE = (
    "This is a research model. It may be wrong or harmful, it is no therapist, and it is no substitute for help from "
    "people.\n这是一个研究用模型：它可能出错，不是心理咨询师，也不能代替真人的帮助。"
)
HELP_LINES = {
    "en": """\
If you or someone near you may be in danger, please turn to people now. This program can't help with that.
  Emergency: 112 (Europe, most mobile phones), 911 (US, Canada), 999 (UK); China: 110 police, 120 ambulance
  China: 12356, national psychological aid hotline      US: 988, call or text
  UK and Ireland: Samaritans, 116 123                   Elsewhere: https://findahelpline.com
  Numbers may change: if one does not answer, call the emergency number.""",
    "zh": """\
如果您或身边的人可能有危险，请现在就联系真人求助，这个程序帮不了您。
  紧急情况：中国大陆 110（报警）、120（急救）；欧洲 112，美国和加拿大 911，英国 999
  全国统一心理援助热线：12356
  美国：988；英国和爱尔兰：Samaritans 116 123；其他国家和地区：https://findahelpline.com
  号码可能变动：如果打不通，请拨打紧急电话。""",
}
_CHINESE = re.compile("[\u3400-\u9fff]")


def help_for(message: str) -> str | None:
    """The help lines, in the message's language, where it signals suicide, self-harm or abuse; else None."""
    return HELP_LINES["zh" if _CHINESE.search(message) else "en"] if find_risk(message) else None
