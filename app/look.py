"""The look: Gradio's theme in our colours, and what goes into the page's head. Fonts are the system's; nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

FOLDER = Path(__file__).parent
FAVICON = FOLDER / "favicon.svg"

ACCENT = gr.themes.Color(
    name="iris", c50="#eff1fe", c100="#e0e4fd", c200="#c4cbfb", c300="#a2adf7", c400="#8391f1",
    c500="#5f6fe6", c600="#4656d6", c700="#3a47b4", c800="#2f3a8f", c900="#283070", c950="#191e47",
)  # fmt: skip
PAPER = gr.themes.Color(
    name="paper", c50="#fbfaf9", c100="#f4f3f0", c200="#e7e5e1", c300="#d5d2cc", c400="#a3a09a",
    c500="#76736d", c600="#5a5752", c700="#3a3937", c800="#232325", c900="#19191b", c950="#111113",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """Paper, ink and one accent, in light and dark."""
    base = gr.themes.Base(
        primary_hue=ACCENT,
        secondary_hue=ACCENT,
        neutral_hue=PAPER,
        radius_size=gr.themes.sizes.radius_lg,
        font=("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="#1d1c1b",
        body_text_color_dark="#edecea",
        body_text_color_subdued="#66635e",
        body_text_color_subdued_dark="#a09d97",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#2e2e31",
        border_color_accent="*primary_300",
        color_accent="*primary_600",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="#20233c",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="560",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_info_text_color="*body_text_color_subdued",
        block_info_text_color_dark="*body_text_color_subdued",
        form_gap_width="0px",
        input_background_fill="#ffffff",
        input_background_fill_dark="#151517",
        input_border_color="*neutral_300",
        input_border_color_dark="#3a3a3e",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        input_border_width="1px",
        input_radius="10px",
        checkbox_border_radius="5px",
        input_shadow="none",
        input_shadow_focus="0 0 0 3px color-mix(in srgb, var(--primary-500) 22%, transparent)",
        input_shadow_focus_dark="0 0 0 3px color-mix(in srgb, var(--primary-400) 30%, transparent)",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_hover_dark="#323236",
        button_large_radius="10px",
        button_medium_radius="9px",
        checkbox_label_background_fill="*background_fill_primary",
        checkbox_label_background_fill_dark="*background_fill_primary",
        checkbox_label_background_fill_selected="*color_accent_soft",
        checkbox_label_background_fill_selected_dark="*color_accent_soft",
        checkbox_label_border_color="*neutral_300",
        checkbox_label_border_color_dark="#3a3a3e",
        checkbox_label_border_width="1px",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
        loader_color="*primary_500",
        slider_color="*primary_600",
    )


def head() -> str:
    """The style sheets of the studio and of its widgets, and the viewport."""
    sheets = [FOLDER / "style.css", *sorted((FOLDER / "widgets").glob("*/style.css"))]
    css = "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
    return f'<meta name="color-scheme" content="light dark">\n<style>\n{css}</style>\n'
