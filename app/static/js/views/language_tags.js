// Languages to choose from where a tag is to be typed.

import { h } from "../dom.js";
import { languageName } from "../i18n.js";

const TAGS = ["en", "zh", "lzh", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "uk", "ar", "tr", "hi", "ja", "ko", "vi", "th", "id"];

/** What inputs with `list="language-tags"` offer. */
export const languageTags = () => h("datalist", { id: "language-tags" }, TAGS.map((tag) => h("option", { value: tag }, languageName(tag))));
