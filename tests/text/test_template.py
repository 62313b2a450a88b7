"""Templates from an untrusted folder: no way to Python, and bounded time, memory and output."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from psychecore.text import meter
from psychecore.text.chat import ChatTemplate

ASK = [{"role": "user", "content": "x"}]

# The ways out of jinja2's sandbox, or of other template engines, that have been published, and their relatives.
ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''['__cl' ~ 'ass__'].__mro__[1].__subclasses__() }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ [''] | map('attr', '__class__') | list }}",
    "{{ messages | selectattr('__class__') | list }}{{ [''] | sort(attribute='__class__.__mro__') }}",
    "{{ ('',) | groupby('__class__') }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "{{ '{0[__class__]}'.format('') }}",
    "{{ ('{0.__cla' ~ 'ss__}').format(1) }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ['{0.__class__}'] | map('format', '') | list }}",
    "{{ '%s' | safe | attr('format') }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ range.__class__ }}",
    "{{ dict.mro() }}",
    "{{ dict.fromkeys([1]) }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self['_TemplateReference__context'] }}",
    "{% for i in [1] %}{{ loop.__init__ }}{% endfor %}",
    "{% for i in [1] %}{{ loop._undefined }}{% endfor %}",
    "{% for i in [1] %}{{ loop._iterator }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._environment }}",
    "{% macro m() %}{{ caller._func }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% set ns = namespace() %}{{ ns._Namespace__attrs }}",
    "{{ (1).__class__ }}{{ (1).real.denominator }}",
    "{{ (messages | map('upper')).gi_frame }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'content': 'y'}) }}",
    "{{ messages[0].pop('content') }}",
    "{{ messages.sort }}",
    "{{ ''.encode('idna') }}",
    "{{ undefined_name.__class__ }}",
    "{{ raise_exception }}{{ range }}{{ namespace() }}",
    "{% include 'x' %}",
    "{% import 'x' as x %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
    "{% set x %}{% include 'x' %}{% endset %}",
    "{{ 1 | turn }}{{ 1 | a }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_reaches_an_attribute_of_python(source: str) -> None:
    text = refusal = ""
    try:
        text = ChatTemplate(source, {}).render(ASK, False)
    except ValueError as error:
        refusal = str(error)
    assert "<class" not in refusal
    assert text.replace("Undefined", "").strip("[], ") == ""  # what is out of reach is undefined and writes nothing
    assert ASK == [{"role": "user", "content": "x"}]


def repeat(step: str, start: str = "'ab'") -> str:
    return "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}".replace(
        "START", start
    ).replace("STEP", step)


TANGLE = repeat("[ns.x, ns.x]", "['ab']")  # 60 lists, of which each holds the one before it twice
KEYS = repeat("(ns.x, ns.x)", "(1,)")
CHAIN = "{% set ns = namespace(x=(1,)) %}{% for i in range(2000) %}{% set ns.x = (ns.x,) %}{% endfor %}"
BIG = "{% set b = 'ab' * 400000 %}"
EVER = "{% for i in range(1000000) %}"
END = "{% endfor %}"
NULS = "{% set b = '\\0' * 1300000 %}"  # a third of the small purse, whose escapes take more than the rest
UPPER = "{% for i in range(99999) %}{% set x = b.upper() %}{% endfor %}"
HOSTILE = {
    "loops in loops": "{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}",
    "loops whose test refuses all": EVER + "{% for b in range(1000000) if b < 0 %}{% endfor %}" + END,
    "doubling with ~": repeat("ns.x ~ ns.x"),
    "doubling with +": repeat("ns.x + ns.x"),
    "doubling with join": repeat("[ns.x, ns.x] | join"),
    "doubling with str.join": repeat("ns.x.join([ns.x, ns.x])"),
    "a text as joint of its letters": repeat("ns.x.join(ns.x)"),
    "doubling with format": repeat("'{}{}'.format(ns.x, ns.x)"),
    "doubling with %": repeat("'%s%s' % (ns.x, ns.x)"),
    "doubling with replace": repeat("ns.x | replace('a', ns.x)"),
    "doubling with str.replace": repeat("ns.x.replace('', ns.x)"),
    "doubling with set blocks": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ ns.x }}"
    "{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "shared lists, written": TANGLE + "{{ ns.x }}",
    "shared lists, compared": TANGLE + "{{ ns.x == ns.x[0] }}",
    "shared lists, as json": TANGLE + "{{ ns.x | tojson }}",
    "shared lists, as text": TANGLE + "{{ ns.x | string }}",
    "shared lists, searched": TANGLE + "{{ [1].count(ns.x) }}{{ 1 in ns.x }}",
    "shared lists, formatted": TANGLE + "{{ '{}'.format(ns.x) }}",
    "shared lists, formatted with %": TANGLE + "{{ '%s' % (ns.x,) }}",
    "shared lists, tested": TANGLE + "{{ ns.x is eq(ns.x[0]) }}",
    "shared lists, selected": TANGLE + "{{ [ns.x] | select('eq', ns.x[0]) | list }}",
    "shared lists, as an error": TANGLE + "{{ raise_exception(ns.x) }}",
    "shared lists, in a loop": TANGLE + "{% for i in [1, 2] %}{{ loop.changed(ns.x) }}{% endfor %}",
    "shared lists, indented": TANGLE + "{{ ns.x | indent }}{{ ns.x | trim }}{{ ns.x | upper }}",
    "shared tuples as keys": KEYS + "{{ {ns.x: 1} }}",
    "shared tuples looked up": KEYS + "{{ {}[ns.x] }}",
    "shared tuples looked up by get": KEYS + "{{ {}.get(ns.x) }}",
    "shared tuples made unique": KEYS + "{{ [ns.x] | unique | list }}",
    "shared tuples in dict()": KEYS + "{{ dict([[ns.x, 1]]) }}",
    "deep tuples hashed": CHAIN + "{{ {}[ns.x] }}",
    "deep tuples as keys": CHAIN + "{{ {ns.x: 1} }}",
    "deep tuples compared": CHAIN + "{{ ns.x == ((ns.x,),) }}",
    "namespaces in namespaces": "{% set ns = namespace(x=1) %}{% for i in range(60) %}"
    "{% set n = namespace(a=ns.x, b=ns.x) %}{% set ns.x = n %}{% endfor %}{{ ns.x }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "indent by a text": BIG + "{{ ('a\n' * 1000) | indent(b) }}",
    "a wide %": "{{ '%1000000000d' % 1 }}",
    "a wide % by a star": "{{ '%*d' % (1000000000, 1) }}",
    "a wide % by name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "a precise %": "{{ '%.1000000000f' % 1.0 }}",
    "a wide format": "{{ '{:>1000000000}'.format(1) }}",
    "a wide format by a field": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "a wide format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "many fields": BIG + "{{ ('{0}' * 10000).format(b) }}",
    "escapes in json": NULS + "{{ [b] | tojson | length }}",
    "escapes in a list": NULS + "{{ [b, b] | string | length }}{{ [b, b] | upper | length }}",
    "escapes in a list, written": NULS + "{{ [b, b] }}",
    "escapes in a list, joined": NULS + "{{ [b, b] ~ '' }}",
    "digits read again and again": "{% set b = 'ff' * 40000 %}{% for i in range(99999) %}{% set x = b | int(base=16) %}"
    "{% endfor %}",
    "floats read again and again": "{% set b = '9' * 80000 %}{% for i in range(99999) %}{% set x = b | float %}"
    "{% endfor %}",
    "a text cut into its words": "{{ ('ab ' * 300000) | title }}",
    "a text cut into its lines": "{{ ('\\n' * 300000) | indent }}",
    "methods of what is safe": "{% set b = ('a' * 100000) | safe %}" + UPPER,
    "methods of what is escaped": "{% set b = ('a' * 100000) | e %}" + UPPER,
    "quotes escaped": "{{ ('\"' * 1300000) | e | length }}",
    "escapes in an error": NULS + "{{ raise_exception([b]) }}",
    "escapes in %": NULS + "{{ '%s' % [[b]] }}",
    "escapes in a format": NULS + "{{ '{}'.format([b]) }}",
    "a number of many bits": "{% set x = ('f' * 100000) | int(base=16) %}{{ -x }}",
    "many names": "{% set " + ", ".join(f"v{i}" for i in range(600)) + " = x %}",
    "a scoped block": "{% for i in range(9) %}{% block b scoped %}{% endblock %}{% endfor %}",
    "names set on condition": "".join("{% if a %}{% set v" + str(i) + " = 1 %}{% endif %}" for i in range(3300)),
    "tojson indented": "{{ [[1]] | tojson(indent=1000000000) }}",
    "tojson with long separators": BIG + "{{ range(1000) | list | tojson(separators=(b, b)) }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "a block that calls itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "a recursive loop": "{% for i in range(99) recursive %}{% if loop.depth < 20 %}{{ loop(range(99)) }}{% endif %}"
    "{% endfor %}",
    "batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "slice": "{{ [1] | slice(1000000000, 0) | list }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "powers": "{{ 9 ** 9 ** 9 }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "squares": repeat("ns.x * ns.x", "3") + "{{ ns.x }}",
    "hexadecimal": "{% set x = ('f' * 1000000) | int(base=16) %}{{ x * x }}",
    "to_bytes": "{{ (1).to_bytes(1000000000) }}",
    "long lists": "{{ [1] * 1000000000 }}",
    "long lists, the other way": "{{ 1000000000 * [1] }}",
    "ranges": "{{ range(1000000) | list * 1000 }}",
    "wordwrap": "{{ ('a' * 1000000) | wordwrap(1) }}",
    "urlize": "{{ ('www.' * 1000000) | urlize }}",
    "strip of many letters": "{{ ('a' * 800000).strip('bcdefghij' * 80000) }}",
    "trim of many letters": "{{ ('a' * 800000) | trim('bcdefghij' * 80000) }}",
    "a search from the end": "{{ ('a' * 800000).rfind('b' + 'a' * 400000) }}",
    "a split from the end": "{{ ('a' * 800000).rsplit('b' + 'a' * 400000) }}",
    "slices for ever": BIG + EVER + "{% set x = b[1:] %}" + END,
    "comparisons for ever": BIG + "{% set c = b ~ '' %}" + EVER + "{% if b == c %}{% endif %}" + END,
    "searches for ever": BIG + EVER + "{% if 'zz' in b %}{% endif %}" + END,
    "capitals for ever": BIG + EVER + "{% set x = b | upper %}{% set x = b.upper() %}" + END,
    "splits for ever": BIG + EVER + "{% set x = b.split('a') %}" + END,
    "texts that are kept": BIG + "{% set ns = namespace(x=[]) %}" + EVER + "{% set ns.x = ns.x + [b ~ i] %}" + END,
    "a list that grows": "{% set ns = namespace(x=[]) %}" + EVER + "{% set ns.x = ns.x + [i] %}" + END,
    "many arguments": "{% set l = range(100000) | list %}" + EVER + "{% set x = 1 | default(*l) %}" + END,
    "many arguments to a macro": "{% macro m() %}{{ varargs[0] }}{% endmacro %}{% set l = range(100000) | list %}"
    + EVER
    + "{{ m(*l) }}"
    + END,
    "a long literal": EVER + "{% set x = [" + "1," * 10000 + "] %}" + END,
    "a loop's length": "{% set r = range(100000) | reverse %}"
    + EVER
    + "{% for k in r if k %}{{ loop.length }}{% break %}{% endfor %}"
    + END,
    "a long attribute": "{{ range(100000) | map(attribute='a' + '.a' * 10000) | list | length }}",
    "select in a list": "{% set l = range(20000) | list %}{{ l | select('in', l) | list | length }}",
    "a long join": BIG + "{{ range(100000) | join(b) | length }}",
    "a static text for ever": EVER + "{% set x %}" + "a" * 100000 + "{% endset %}" + END,
    "output for ever": EVER + "{{ 'a' * 1000 }}" + END,
    "brackets in brackets": "{{" + "(" * 50000 + "1" + ")" * 50000 + "}}",
    "a long sum": "{{" + "1+" * 15000 + "1}}",
    "a long chain of filters": "{{ a" + "|e" * 15000 + "}}",
    "a long chain of attributes": "{{ a" + ".a" * 15000 + "}}",
    "a long chain of comparisons": "{{ a" + "<a" * 15000 + "}}",
    "many cases": "{% if a %}" + "{% elif a %}" * 6000 + "{% endif %}",
    "loops in loops in loops": "{% for a in b %}" * 90 + "{% endfor %}" * 90,
    "many digits": "{{" + "9" * 5000 + "}}",
    "a long source": "a" * 1_000_000,
}


@pytest.fixture
def small_purse(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hundredth of the work that templates may do, so that these tests take a hundredth of the time."""
    monkeypatch.setattr(meter, "MAX_WORK", meter.MAX_WORK // 100)
    start = time.process_time()
    yield
    assert time.process_time() - start < 10  # it is about 0.05 s; jinja2's compiler takes up to 2 s


@pytest.mark.usefixtures("small_purse")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_template_that_runs_wild_is_refused_soon(case: str) -> None:
    with pytest.raises(ValueError, match="chat template") as error:
        ChatTemplate(HOSTILE[case], {}).render(ASK, False)
    assert len(str(error.value)) < 600


def test_time_and_memory_are_bounded_at_the_real_limits() -> None:
    cases = ["loops in loops", "texts that are kept", "shared lists, written"]
    cases += ["{% set b = '\\0' * 190000000 %}{{ [b] | tojson | length }}{{ [b, b] | string | length }}"]
    code = (
        "import time, torch\n"
        "from psychecore.train.metrics import peak_memory_gib\n"
        "from tests.text.test_template import ASK, HOSTILE, ChatTemplate\n"
        f"for case in {cases!r}:\n"
        "    start = time.process_time()\n"
        "    source = HOSTILE[case] if case in HOSTILE else case\n"
        "    try: ChatTemplate(source, {}).render(ASK, False)\n"
        "    except ValueError: pass\n"
        "    print(time.process_time() - start, peak_memory_gib(torch.device('cpu')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    figures = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(figures) == len(cases)
    for case, (seconds, gib) in zip(cases, figures, strict=True):
        assert seconds < 30, (case, seconds)
        assert gib < 2, (case, gib)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[-1:][0].content ~ 1 ~ none }}", "x1None"),
        ("{% for m in messages[::-1] if m.role == 'user' %}{{ loop.length }}{{ loop.last }}{% endfor %}", "1True"),
        ("{{ messages | map(attribute='role') | join(',') }}", "user"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{% for k, v in messages[0] | dictsort %}{{ k }}={{ v }};{% endfor %}", "content=x;role=user;"),
        ("{% for k, v in messages[0].items() %}{{ k }}{% endfor %}", "rolecontent"),
        ("{{ ' a b ' | trim | upper | replace('A', 'é') }}", "é B"),
        ("{{ 'a</think>b'.split('</think>')[-1].lstrip('\\n') }}", "b"),
        ("{{ '%s is %02d and %.1f%%' % ('a', 7, 0.25) }}", "a is 07 and 0.2%"),
        ("{{ '{} {a:>5}'.format(1, a='b') }}", "1     b"),
        ("{{ {'a': [1, 'é', none]} | tojson }}", '{"a": [1, "é", null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
        ("{{ 'a\nb' | indent(2) }}{{ 'a\nb' | indent('> ', first=true) }}", "a\n  b> a\n> b"),
        ("{{ [3, 1, 2] | sort | reverse | list }}{{ [3, 1] | max }}{{ 'abc' | reverse }}", "[3, 2, 1]3cba"),
        ("{% set ns = namespace(x=[]) %}{% set ns.x = ns.x + [1] %}{{ ns.x[0] + 1 }}", "2"),
        ("{% macro m(a, b='c') %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call m(1) %}d{% endcall %}", "1cd"),
        ("{{ dict(a=1).get('b', 2) }}{{ 7 // 2 }}{{ 7 % 2 == 1 }}{{ -3 | abs }}{{ 1.26 | round(1) }}", "23True31.3"),
        ("{{ messages is iterable and messages is not string and x is not defined }}", "True"),
        ("{{ x | default('y') }}{{ '5' | int + 1 }}{{ 'a,b'.split(',') | first }}{{ 'ab' | list | last }}", "y6ab"),
        ("{% filter upper %}a{% endfilter %}{% set x %}b{% endset %}{{ x | length }}", "A1"),
        ("{% for x in [[1, [2]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "12"),
    ],
)
def test_what_honest_templates_use_works(source: str, expected: str) -> None:
    assert ChatTemplate(source, {}).render(ASK, False) == expected


def test_a_long_conversation_costs_a_small_part_of_what_is_allowed(shared_folder: object) -> None:
    from psychecore.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(shared_folder / "data" / "tokenizers" / "qwen3")  # type: ignore[operator]
    turns = [{"role": ("user", "assistant")[i % 2], "content": "Hello. 你好。" * 100} for i in range(1000)]
    assert tokenizer._template is not None
    tokenizer._template.render(turns, True)
    assert tokenizer._template._sandbox.meter.left > meter.MAX_WORK * 0.8
