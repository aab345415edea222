"""Writes masks.json: which tokens and characters of a conversation the assistant spoke.

`tokens`: with generation blocks, as transformers' `return_assistant_tokens_mask` has it, for a real tokenizer.
`spans`: without such blocks; what is spoken is written beside each conversation by hand, the text is transformers'.

Run: python tests/golden/masks.py   (needs transformers and jinja2; no network, no model)
"""

import json
import pathlib

from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent


def turn(role, content=None, **more):
    return {"role": role, "content": content, **more}


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]
PLAIN = [
    turn("system", "Be kind."),
    turn("user", "Hello"),
    turn("assistant", " Hi! 👋 "),
    turn("user", "Bye"),
    turn("assistant", "Ça va?"),
]
CALLS = [
    turn("system", "Be brief."),
    turn("user", "How are Graz and Wien?"),
    turn("assistant", "Let me look.", tool_calls=[call("sky", town="Graz"), call("sky", town="Wien")]),
    turn("tool", "föhnig"),
    turn("tool", "grey"),
    turn("assistant", "Graz is better."),
]
ONE_CALL = [
    turn("user", "Graz?"),
    turn("assistant", None, tool_calls=[call("sky", town="Graz")]),
    turn("tool", "clear"),
    turn("assistant", "Clear."),
]
THINKS = [
    turn("user", "One?"),
    turn("assistant", "<think>\nfirst\n</think>\n\nYes."),
    turn("user", "Two?"),
    turn("assistant", "<think>\nsecond\n</think>\n\nNo."),
]

# Blocks for what is said; thoughts of earlier turns are left out, so that no prefix of a conversation is its prefix.
MARKED = """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{- '[' + m.role + ']\\n' -}}
{%- set said = (m.content or '') if loop.last else (m.content or '').split('</think>')[-1] -%}
{%- generation -%}
{{- said -}}
{%- for c in m.tool_calls or [] %}
    {{ c.function | tojson }}
{%- endfor %}{{ '<|end|>' }}
{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- '[' + m.role + ']\\n' + m.content + '<|end|>\\n' -}}
{%- endif -%}
{%- endfor -%}"""

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA3 = """{{- bos_token }}
{%- if tools %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\nFunctions: ' + tools | tojson + '<|eot_id|>' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + m.content | tojson + '<|eot_id|>' }}
    {%- elif m.tool_calls %}
        {%- if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
        {{- m.tool_calls[0].function.arguments | tojson + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# Qwen3's habits: thoughts before the last question are dropped, a last turn gets a thought even if it has none, and
# answers of tools are gathered in a user's turn.
QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' + (messages[0].content + '\\n' if messages[0].role == 'system' else '') }}
    {{- 'Tools: ' + tools | tojson + '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(question=0) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set said = m.content or '' %}
        {%- set thought = '' %}
        {%- if '</think>' in said %}
            {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.question and (loop.last or thought) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- said }}
        {%- for c in m.tool_calls or [] %}
            {%- if said or not loop.first %}{{ '\\n' }}{% endif %}
            {{- '<tool_call>\\n' + c.function | tojson + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# The prompt opens a thought that the conversation does not keep.
THINKER = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}"
    "{{ m.content.split('</think>')[-1].strip() + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n<think>\\n' }}{% endif %}"
)

QWEN_TOKENS = {"eos_token": "<|im_end|>"}
LLAMA_TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
TAG = [
    turn("user", "x"),
    turn("assistant", "<thin> ice"),
    turn("user", "y"),
    turn("assistant", "<think>\nz\n</think>\n\nOk"),
]
# name, template, special tokens, messages, tools, what is spoken
SPANS = [
    ("chatml", CHATML, QWEN_TOKENS, PLAIN, None, [" Hi! 👋 <|im_end|>", "Ça va?<|im_end|>"]),
    ("chatml, no eos", CHATML, {"eos_token": "</s>"}, PLAIN, None, [" Hi! 👋 <|im_end|>\n", "Ça va?<|im_end|>\n"]),
    ("llama3", LLAMA3, LLAMA_TOKENS, PLAIN, None, ["Hi! 👋<|eot_id|>", "Ça va?<|eot_id|>"]),
    (
        "llama3, a tool",
        LLAMA3,
        LLAMA_TOKENS,
        ONE_CALL,
        TOOLS,
        ['{"name": "sky", "parameters": {"town": "Graz"}}<|eot_id|>', "Clear.<|eot_id|>"],
    ),
    (
        "qwen3, tools",
        QWEN3,
        QWEN_TOKENS,
        CALLS,
        TOOLS,
        [
            'Let me look.\n<tool_call>\n{"name": "sky", "arguments": {"town": "Graz"}}\n</tool_call>\n<tool_call>\n'
            '{"name": "sky", "arguments": {"town": "Wien"}}\n</tool_call><|im_end|>',
            "<think>\n\n</think>\n\nGraz is better.<|im_end|>",
        ],
    ),
    (
        "qwen3, only a call",
        QWEN3,
        QWEN_TOKENS,
        ONE_CALL[:3],
        TOOLS,
        ['<tool_call>\n{"name": "sky", "arguments": {"town": "Graz"}}\n</tool_call><|im_end|>'],
    ),
    (
        "qwen3, thoughts",
        QWEN3,
        QWEN_TOKENS,
        THINKS,
        None,
        ["Yes.<|im_end|>", "<think>\nsecond\n</think>\n\nNo.<|im_end|>"],
    ),
    ("thinker", THINKER, {"bos_token": "<s>", "eos_token": "</s>"}, TAG, None, ["<thin> ice</s>", "Ok</s>"]),
]


def spans(name, template, special, messages, tools, spoken):
    [text], _ = chat_template_utils.render_jinja_template([messages], tools=tools, chat_template=template, **special)
    at, found = 0, []
    for words in spoken:
        start = text.index(words, at)
        at = start + len(words)
        found.append([len(text[:start].encode()), len(text[:at].encode())])
    case = {"name": name, "source": template, "special_tokens": special, "messages": messages, "tools": tools}
    return case | {"text": text, "spans": found}


def tokens(messages, tools):
    file = str(HERE / "smollm_tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<|end|>", eos_token="<|end|>")
    made = tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    case = {"source": MARKED, "messages": messages, "tools": tools}
    return case | {"ids": made["input_ids"], "mask": made["assistant_masks"]}


golden = {
    "tokens": [tokens(messages, None) for messages in (PLAIN, CALLS, ONE_CALL, THINKS, TAG)],
    "spans": [spans(*case) for case in SPANS],
}
lines = []
for kind, cases in golden.items():
    lines.append(f'"{kind}": [\n' + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]")
(HERE / "masks.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
