"""The widget of `label_pairs`: what it shows, and what it does with a message from the browser."""

from pathlib import Path

import anywidget
import traitlets

from minirlhf.show.labelling import Labelling
from minirlhf.show.microscope_data import clean

FOLDER = Path(__file__).parent


class LabelWidget(anywidget.AnyWidget):
    """Two responses side by side. `view` is all that the browser shows."""

    _esm = FOLDER / "labelling.js"
    _css = FOLDER / "labelling.css"
    view = traitlets.Dict().tag(sync=True)

    def __init__(self, session: Labelling, question: str) -> None:
        self._session, self._question, self._answers = session, question, 0
        super().__init__(view=self._seen(""))
        self.on_msg(self._received)

    def _received(self, widget: object, message: dict, buffers: object) -> None:
        """Do what the reader chose, and answer with the new view.

        A message names the number of choices that the reader saw. If there are more by now, for
        example after a double click, it is for a pair that the reader has not seen. Then it is
        ignored.
        """
        said = ""
        try:
            if message.get("seen") == self._session.progress[0]:
                if message.get("action") == "undo":
                    self._session.undo()
                else:
                    self._session.choose(str(message.get("action")))
        except (ValueError, OSError) as error:
            said = str(error)
        self._answers += 1
        self.view = self._seen(said)

    def _seen(self, error: str) -> dict:
        pair, (done, total) = self._session.current, self._session.progress
        texts = {"prompt": "", "left": "", "right": ""}
        if pair is not None:
            texts = {name: clean(getattr(pair, name).strip()) for name in texts}
        return texts | {
            "question": clean(self._question),
            "done": done,
            "total": total,
            "finished": pair is None,
            "file": clean(str(self._session.path)),
            "error": clean(error),
            "answers": self._answers,  # changes with each answer, so the browser always hears of it
        }

    def __repr__(self) -> str:
        view = self.view
        return f"{view['done']} of {view['total']} pairs labelled, saved in {view['file']}"
