"""Every protocol that is cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.dialects.anthropic_messages import AnthropicMessages
from cachesvc.dialects.openai_chat import OpenAIChat
from cachesvc.dialects.openai_completions import OpenAICompletions
from cachesvc.dialects.openai_embeddings import OpenAIEmbeddings
from cachesvc.dialects.openai_responses import OpenAIResponses

if TYPE_CHECKING:
    from cachesvc.dialects.base import Dialect

DIALECTS: tuple[Dialect, ...] = (
    OpenAIChat(),
    OpenAICompletions(),
    OpenAIResponses(),
    AnthropicMessages(),
    OpenAIEmbeddings(),
)
"""The first one words the errors of paths that are none of theirs."""
