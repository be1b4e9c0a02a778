"""Captioners of the real classes at tiny sizes: a GIT that learnt to name colours, and BLIP-2 of two ages."""

import copy

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from neuroclips.errors import ArtefactError, DataError
from neuroclips.pretrained.caption import Captioner

SIZE, QUERIES = 16, 4
SAID = ["a red picture", "green", "the sky is blue"]  # of three lengths, so that shorter ones are padded
VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE, patch_size=8
)
WORDS = ("<pad>", "<unk>", "<start>", "<end>", *sorted(set(" ".join(SAID).split())))


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_tokenizer():
    ids = {word: i for i, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, ids[word]) for word in ("<start>", "<end>")]
    inner.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )


def make_git():
    torch.manual_seed(0)
    config = GitConfig(
        vision_config=VISION, vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    images = CLIPImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_center_crop=False)
    return GitForCausalLM(config), GitProcessor(images, make_tokenizer())


def make_blip2():
    torch.manual_seed(0)
    text = dict(
        model_type="opt", vocab_size=len(WORDS) + 3, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        ffn_dim=32, max_position_embeddings=64, word_embed_proj_dim=24, bos_token_id=2, eos_token_id=3, pad_token_id=0,
        dropout=0.0,
    )  # fmt: skip
    qformer = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, encoder_hidden_size=16,
        vocab_size=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=VISION, qformer_config=qformer, text_config=text, num_query_tokens=QUERIES,
        image_token_index=len(WORDS),
    )  # fmt: skip
    images = BlipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():  # wider than for real sizes, so that it sees images from its first steps
        model.query_tokens.normal_()
        for name, weight in model.named_parameters():
            if name.startswith(("qformer", "vision", "language_projection")) and weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5)
    return model, Blip2Processor(images, make_tokenizer(), num_query_tokens=QUERIES)


def coloured(n, seed):
    """Images (n, 3, 20, 28) of one dim or bright colour, a little noisy, and which of red, green and blue it is."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 3, n)
    images = 40 * rng.uniform(size=(n, 3, 20, 28))
    images[np.arange(n), colour] += rng.uniform(80, 215, (n, 1, 1))
    return images.astype(np.uint8), colour


def taught(model, processor, steps=80):
    """Losses of teaching the words of the colours, as anyone trains a captioner: images and captions together."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for step in range(steps):
        images, colour = coloured(24, seed=step)
        batch = processor(
            images=list(images.transpose(0, 2, 3, 1)), text=[SAID[c] for c in colour], padding=True,
            input_data_format="channels_last", return_tensors="pt",
        )  # fmt: skip
        no_word = (batch["attention_mask"] == 0) | (batch["input_ids"] == len(WORDS))  # padding, or the image's place
        labels = batch["input_ids"].masked_fill(no_word, -100)
        loss = model(**batch, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained tiny GIT as anyone would save one, and its losses."""
    folder = tmp_path_factory.mktemp("git")
    model, processor = make_git()
    losses = taught(model, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, losses


def test_a_captioner_that_learnt_colours_names_those_of_new_images(folder):
    path, losses = folder
    assert losses[0] > 2
    assert np.mean(losses[-5:]) < 0.2
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
    } <= {p.name for p in path.iterdir()}
    images, colour = coloured(40, seed=1000)
    true = [SAID[c] for c in colour]
    captioner = Captioner.load(path)
    assert captioner.captions(images) == true
    assert Captioner(*make_git()).captions(images) != true
    turned = images[:, [1, 2, 0]]  # red takes green's values: the order of channels arrives
    assert captioner.captions(turned) == [SAID[(c - 1) % 3] for c in colour]


def test_captions_depend_on_neither_batch_nor_run_nor_kind_of_number(folder):
    captioner = Captioner.load(folder[0])
    images, _ = coloured(7, seed=99)
    together = captioner.captions(images)
    assert len(set(together)) == 3
    assert captioner.captions(images) == together
    assert captioner.captions(images.astype(np.float32) / 255) == together
    told = []
    captioner.batch = 3
    assert captioner.captions(images, progress=lambda *said: told.append(said)) == together
    assert told == [(3, 7, "captions"), (6, 7, "captions"), (7, 7, "captions")]
    captioner.batch = 1
    assert captioner.captions(images[::-1]) == together[::-1]
    assert captioner.captions(images[:0]) == []


def test_captions_are_cut_at_their_longest(folder):
    captioner = Captioner.load(folder[0])
    captioner.max_new_tokens = 2
    cut = {" ".join(said.split()[:2]) for said in SAID}
    assert set(captioner.captions(coloured(20, seed=5)[0])) == cut


@pytest.fixture(scope="module")
def blip2():
    model, processor = make_blip2()
    taught(model, processor, steps=100)
    return model, processor


@pytest.mark.parametrize("age", ["today's", "older"])
def test_blip2_takes_the_same_path(blip2, tmp_path, age):
    """It says what its language model finds likeliest, word after word, behind the queries of the image."""
    model, processor = copy.deepcopy(blip2)
    if age == "older":  # files that name no word for the image
        model.config.image_token_index = None
        processor = Blip2Processor(processor.image_processor, make_tokenizer())
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    captioner = Captioner.load(tmp_path)
    images, colour = coloured(12, seed=1000)
    found = captioner.captions(images)
    assert found == [SAID[c] for c in colour]
    captioner.batch = 5
    assert captioner.captions(images) == found

    model, processor = blip2
    pixels = processor(
        images=list(images.transpose(0, 2, 3, 1)), return_tensors="pt", input_data_format="channels_last"
    )
    ids = torch.tensor([[len(WORDS)] * QUERIES + [2]] * len(images))
    for _ in range(5):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    said = [row[: row.index(3)] for row in ids[:, QUERIES + 1 :].tolist()]
    assert found == [" ".join(WORDS[i] for i in row) for row in said]


def test_half_precision_hardly_matters(folder):
    captioner = Captioner.load(folder[0], dtype=torch.bfloat16)
    assert captioner.model.dtype == torch.bfloat16
    images, colour = coloured(20, seed=11)
    assert captioner.captions(images) == [SAID[c] for c in colour]


def test_folders_that_hold_no_captioner_are_refused(tmp_path):
    with pytest.raises(ArtefactError, match=r"nowhere: no config\.json; expected 'mini' or a folder of caption"):
        Captioner.load(tmp_path / "nowhere")
    model, processor = make_git()
    model.save_pretrained(tmp_path)
    with pytest.raises(ArtefactError, match=f"{tmp_path.name}: cannot be read as a captioner"):
        Captioner.load(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ArtefactError, match=f"{tmp_path.name}: cannot be read as a captioner"):
        Captioner.load(tmp_path)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 20, 28, 3), np.uint8), r"\(2, 20, 28, 3\); expected \(images, 3"),
        (np.zeros((3, 20, 28), np.uint8), r"\(3, 20, 28\); expected"),
        (np.zeros((2, 3, 20, 28), np.int64), "type int64; expected uint8"),
        (np.full((2, 3, 20, 28), 255, np.float32), r"outside \[0, 1\]"),
        (np.full((2, 3, 20, 28), np.nan, np.float32), r"outside \[0, 1\]"),
    ],
)
def test_what_is_no_image_is_refused(images, said):
    with pytest.raises(DataError, match=said):
        Captioner(*make_git()).captions(images)
