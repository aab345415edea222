"""Writes data.json: chat templates as transformers renders them, corpus digests and shuffled orders as Python has them.

Run: python tests/golden/data.py   (needs transformers and jinja2; no network, no model)
"""

import datetime
import hashlib
import json
import pathlib
import struct

from transformers.utils import chat_template_utils

NOW = 1785412805  # 2026-07-30 12:00:05 UTC


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc)


chat_template_utils.datetime = FixedClock

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}{% endif %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant
' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '
' }}{% else %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system message comes first in any case. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "Functions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content | tojson }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {%- generation %}
        {%- if 'tool_calls' in message %}
            {%- if not message.tool_calls|length == 1 %}
                {{- raise_exception("One call at a time, please") }}
            {%- endif %}
            {%- set tool_call = message.tool_calls[0].function %}
            {{- '{"name": "' + tool_call.name + '", ' }}
            {{- '"parameters": ' }}
            {{- tool_call.arguments | tojson }}
            {{- "}" }}
        {%- else %}
            {{- message['content'] | trim }}
        {%- endif %}
        {{- '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>' }}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}

{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

MISTRAL = """{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}
    {% if message['role'] == 'system' %}
        {% set ns.system = message['content'] + '\\n\\n' %}
        {% continue %}
    {% endif %}
    {% if message['role'] not in ['user', 'assistant'] %}
        {{ raise_exception('Only user and assistant take turns here, not ' + message['role']) }}
    {% endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + ns.system + message['content'].strip() + ' [/INST]' -}}
        {% set ns.system = '' %}
    {%- else -%}
        {%- generation -%}
        {{ ' ' + message['content'].strip() + eos_token }}
        {%- endgeneration -%}
    {%- endif -%}
{% endfor %}"""

SINK = """{%- set plain = {"z": 1, "a": [true, none, 1.0, 1e-7, "q\\"é\\n</s>"]} -%}
{{ plain | tojson }}
{{ plain | tojson(indent=2, ensure_ascii=true) }}
{{ plain | tojson(separators=(',', ':'), sort_keys=true) }}
{{ [] | tojson(indent=2) }}{{ {} | tojson }}
  {% if messages %}
    {%+ if true %}kept{% endif %}

    {# a comment #}
  {% endif %}
{{ none }} {{ true }} {{ 1.5 }} {{ missing }} {{ 3 }} {{ 1e20 }}
{% for message in messages %}
  {% if loop.index0 == 3 %}{% break %}{% endif %}
{{ loop.index }}:{{ message.content.split(' ')[-1].upper() }}{{ '!' if message.content.startswith('H') else '?' }}
{{- message.get('name', 'nobody') }}
{{ message.items() | map('first') | join(',') }} {{ message.content[:3] | capitalize }} {{ 'x' ~ loop.index }}
{% endfor %}
{% macro shout(text, n=2) %}{{ text.rstrip('!') ~ '!' * n }}{% endmacro %}
{{ shout('no!!!') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ strftime_now('%Y-%m-%d %H:%M:%S %A %B') }}
"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather in a town, <b>now</b>",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}, "at": {"type": "number"}}},
        },
    }
]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


SHORT = [turn("user", "Hello there"), turn("assistant", " Hi! 👋 Ça va?\n")]
LONG = [
    turn("system", "Be brief. "),
    turn("user", "What is the capital of France?"),
    turn("assistant", "Paris."),
    turn("user", "And of <|im_end|> Österreich?"),
    turn("assistant", "Wien, naturally"),
]
CALL = [
    turn("user", "How is Graz?"),
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Graz", "at": 1.0}}}],
    },
    turn("tool", '{"sky": "föhnig & <clear>"}'),
    turn("assistant", "Clear."),
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# name, template, special tokens, [(messages, tools, add_generation_prompt)]
EVERY = [(SHORT, None, False), (SHORT[:1], None, True), (LONG, None, False), (LONG[:4], None, True)]
TEMPLATES = [
    ("chatml", CHATML, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, EVERY),
    (
        "llama3",
        LLAMA3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        EVERY + [(CALL, TOOLS, False), (CALL[:3], TOOLS, True)],
    ),
    ("zephyr", ZEPHYR, SPECIAL, EVERY),
    ("mistral", MISTRAL, SPECIAL, EVERY + [(CALL, None, False)]),
    ("kitchen sink", SINK, SPECIAL, [(LONG, None, False), (SHORT, None, True)]),
]


def case(template, special, messages, tools, prompt):
    made = {"messages": messages, "tools": tools, "add_generation_prompt": prompt}
    marks = "{% generation" in template or "{%- generation" in template
    try:
        [text], spans = chat_template_utils.render_jinja_template(
            [messages],
            tools=tools,
            chat_template=template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks,
            **special,
        )
    except Exception as error:
        return made | {"error": str(error)}
    bytes_before = lambda at: len(text[:at].encode())
    spans = [[bytes_before(a), bytes_before(b)] for a, b in (spans[0] if marks else [])]
    return made | {"text": text, "spans": spans}


def digest(documents):
    """The corpus digest as docs and source define it."""
    made = hashlib.sha256(b"potstill corpus 1\n")
    for ids, loss in documents:
        made.update(struct.pack("<Q", len(ids)) + struct.pack(f"<{len(ids)}I", *ids) + bytes(loss))
    return made.hexdigest()


def order(count, seed, epoch):
    """An epoch's order of sequences as the source defines it."""
    mask, g = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    key = mix((seed + g * (epoch + 1)) & mask)
    made = list(range(count))
    for i in range(count - 1, 0, -1):
        j = (mix((key + g * (i + 1)) & mask) * (i + 1)) >> 64
        made[i], made[j] = made[j], made[i]
    return made


DOCUMENTS = [([5, 4294967294, 0], [1, 1, 0]), ([7], [0]), (list(range(300)), [i % 3 == 0 for i in range(300)])]
ORDERS = [(10, 0, 0), (10, 0, 1), (23, 18446744073709551615, 5), (1, 3, 3)]

golden = {
    "now": NOW,
    "templates": [
        {"name": n, "source": t, "special_tokens": s, "cases": [case(t, s, *c) for c in cases]}
        for n, t, s, cases in TEMPLATES
    ],
    "documents": [{"ids": ids, "loss": [bool(flag) for flag in loss]} for ids, loss in DOCUMENTS],
    "digest": digest(DOCUMENTS),
    "orders": [{"count": c, "seed": str(s), "epoch": e, "order": order(c, s, e)} for c, s, e in ORDERS],
}
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
