"""A question before each action, and the input of a text."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Input, Static


class Question(ModalScreen[bool]):
    """Asks whether to do something."""

    BINDINGS = [  # noqa: RUF012 - as textual declares it
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(Text(self._question))
            yield Static(Text("y: yes   n or Escape: no", "dim"))

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class Message(ModalScreen[None]):
    """Shows a text until a key is pressed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog"):
            yield Static(Text(self._text))
            yield Static(Text("any key: back", "dim"))

    def on_key(self, event: Key) -> None:
        event.stop()
        self.dismiss()


class TextInput(ModalScreen[str | None]):
    """Asks for a text. The answer is None if it was left with Escape."""

    BINDINGS = [Binding("escape", "leave", "Leave")]  # noqa: RUF012 - as textual declares it

    def __init__(self, prompt: str, value: str) -> None:
        super().__init__()
        self._prompt, self._value = prompt, value

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(Text(self._prompt))
            yield Input(self._value)
            yield Static(Text("Enter: use it   Escape: leave", "dim"))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_leave(self) -> None:
        self.dismiss(None)
