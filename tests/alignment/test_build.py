from dataclasses import replace

import pytest

from alignuser_jax.alignment import (
    BuildConfig,
    ExposureMixture,
    RolloutConfig,
    ShardSource,
    VisitConfig,
    build_shards,
)
from alignuser_jax.driver import Backend
from alignuser_jax.records import RATINGS
from alignuser_jax.sampling import ScriptedGenerator
from alignuser_jax.shards import read_examples, read_manifest
from alignuser_jax.views import policy_and_agent_users
from alignuser_jax.world import SiteConfig
from tests.alignment.alignment_toy import Listed, toy
from tests.alignment.reflecting.replies import usable

SMALL = BuildConfig(
    tasks=("world_model", "reflection", "imitation", "visit"),
    limits={"world_model": 60, "reflection": 40, "imitation": 12, "visit": 30},
    visits=VisitConfig(exposure=ExposureMixture(popularity=0, model_top=0)),
    rollouts=RolloutConfig(episodes=8, max_actions=8),
    validation_share=0.25,
)


def build(dataset, out, config=SMALL, **arguments):
    source = {"recommender": Listed(dataset.item_ids)}
    source |= {k: arguments.pop(k) for k in ("users", "recommender") if k in arguments}
    return build_shards(ShardSource(dataset, **source), out, config, **arguments)


def by(generator, policy_id):
    return Backend(generator, lambda text: len(text.split()), policy_id)


def files(directory):
    return {
        p.relative_to(directory).as_posix(): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def built(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    _, agents = policy_and_agent_users(dataset, 6)
    users = [u for u in dataset.user_ids if u not in agents]
    return out, build(dataset, out, users=users), set(agents)


def test_limits_and_labels(built, dataset):
    out, manifest, _ = built
    assert {task: entry["count"] for task, entry in manifest["tasks"].items()} == SMALL.limits
    assert manifest["policy_id"] == "template" and manifest["dataset_hash"] == dataset.hash
    labels = manifest["labels"]
    assert labels["reflections"] == "template" and labels["rollouts"] == "random"
    assert "DEFAULT" in labels["visits"] and "DEFAULT" in labels["satisfaction"]
    assert labels["exposure"] == {"uniform": 1.0, "popularity": 0.0, "model_top": 0.0}
    assert manifest["synthetic"] and manifest["recommender"] == ["listed", "1"]
    assert read_manifest(out) == manifest


def test_users_of_the_parts_are_disjoint(built):
    out, manifest, agents = built
    training = {e.user_id for e in read_examples(out)} - {""}
    held_out = {e.user_id for e in read_examples(out / "validation")} - {""}
    assert training and held_out and not training & held_out
    assert not agents & (training | held_out)
    validation = read_manifest(out / "validation")
    assert (manifest["users"], validation["users"]) == (14, 4)
    assert validation["part"] == "validation"
    assert validation["tasks"].keys() == manifest["tasks"].keys()


def test_every_source_of_the_world_model(built):
    out, _, _ = built
    ids = [e.example_id.split("/")[1] for e in read_examples(out, "world_model")]
    assert {s: ids.count(s) for s in set(ids)} == {
        "human": 20,
        "counterfactual": 20,
        "rollout": 20,
    }
    for example in read_examples(out, "world_model"):
        assert "Past ratings" not in example.messages[1].content, "no persona, no history"
        assert example.messages[-1].content.startswith("[NEXT STATE]\n")


def test_the_same_arguments_give_the_same_bytes(built, dataset, tmp_path):
    out, _, agents = built
    users = [u for u in dataset.user_ids if u not in agents]
    build(dataset, tmp_path / "again", users=users)
    assert files(out) == files(tmp_path / "again")
    build(dataset, tmp_path / "other", replace(SMALL, seed=1), users=users)
    assert files(tmp_path / "other") != files(out)


def test_k_zero_is_imitation(dataset, tmp_path):
    config = replace(SMALL, tasks=("reflection",), k=0, limits={"reflection": 9})
    manifest = build(dataset, tmp_path, config)
    assert {t: e["count"] for t, e in manifest["tasks"].items()} == {"imitation": 9}
    for example in read_examples(tmp_path):
        assert example.messages[-1].content in {str(r) for r in RATINGS}


def test_imitation_and_reflection_share_prompts_and_answers(dataset, tmp_path):
    """The ablation: the same steps, with reasoning, without, and with it shuffled."""
    config = replace(
        SMALL, tasks=("imitation", "reflection"), limits={"imitation": 6, "reflection": 24}
    )
    build(dataset, tmp_path / "a", config)
    labels = build(dataset, tmp_path / "b", replace(config, shuffle_reflections=True))["labels"]
    assert labels["reflections"] == "template, shuffled"
    plain = {
        e.example_id.split("/", 1)[1]: e for e in read_examples(tmp_path / "a", "imitation")
    }
    reflected = list(read_examples(tmp_path / "a", "reflection"))
    moved = list(read_examples(tmp_path / "b", "reflection"))
    assert len(plain) == 6 and len(reflected) == len(moved) == 24
    for example, other in zip(reflected, moved, strict=True):
        step = plain[example.example_id.split("/", 1)[1].rsplit("/", 1)[0]]
        assert example.messages[:-1] == step.messages[:-1] == other.messages[:-1]
        answers = {e.messages[-1].spans[-1].text for e in (example, step, other)}
        assert len(answers) == 1
        assert example.messages[-1].spans[0] != other.messages[-1].spans[0]


def test_visits_follow_the_sites_fixed_length(dataset, tmp_path):
    config = replace(SMALL, tasks=("visit",), site=SiteConfig(horizon=5), validation_share=0)
    build(dataset, tmp_path, config)
    texts = [e.messages for e in read_examples(tmp_path)]
    assert all("[EXIT]" not in m.content for messages in texts for m in messages)
    assert all(messages[-2].content.endswith("recommendations?") for messages in texts)
    assert any(m.content == "BEST-ACTION: [NEXT_PAGE]" for ms in texts for m in ms)


def test_shards_by_a_model(dataset, tmp_path):
    def reply(request):
        if request.answer:
            return request.answer[0][0]
        return usable(request)

    config = replace(SMALL, k=2, sources=("rollout",), validation_share=0)
    limits = {"reflection": 10, "world_model": 10}
    config = replace(config, tasks=("reflection", "world_model"), limits=limits)
    generator = ScriptedGenerator(reply)
    manifest = build(dataset, tmp_path, config, writer=by(generator, "scripted-1"))
    assert manifest["policy_id"] == manifest["labels"]["rollouts"] == "scripted-1"
    assert manifest["labels"]["reflections"] == "generated by scripted-1"
    assert manifest["reflector"] == {"model": "scripted-1"}
    replies = manifest["reflection_replies"]
    assert replies["kept"] == replies["item_named"] == replies["replies"] >= 10
    assert {r.purpose for r in generator.requests} == {"act", "rate", "reflect"}
    for example in read_examples(tmp_path, "reflection"):
        assert example.messages[-1].content.startswith("WHY: I see what ")


def test_reflections_by_another_model_than_acts(dataset, tmp_path):
    config = replace(SMALL, k=2, sources=("rollout",), validation_share=0)
    limits = {"reflection": 6, "world_model": 4}
    config = replace(config, tasks=("reflection", "world_model"), limits=limits)
    acts = ScriptedGenerator(lambda request: request.answer[0][0])
    writes = ScriptedGenerator(usable)
    teacher = replace(by(writes, "hash-of-teacher"), engine={"name": "teacher", "slots": 8})
    both = {"writer": by(acts, "student"), "reflector": teacher}
    manifest = build(dataset, tmp_path / "both", config, **both)
    assert {r.purpose for r in writes.requests} == {"reflect"}
    assert "reflect" not in {r.purpose for r in acts.requests}
    assert manifest["policy_id"] == manifest["labels"]["rollouts"] == "student"
    assert manifest["labels"]["reflections"] == "generated by teacher"
    assert manifest["reflector"] == {"model": "hash-of-teacher", "name": "teacher"}
    alone = build(dataset, tmp_path / "alone", config, reflector=teacher)
    assert alone["labels"]["rollouts"] == "random" and alone["policy_id"] == "hash-of-teacher"


def test_no_more_reflections_are_asked_for_than_the_limit(dataset, tmp_path):
    """A model takes its time; other tasks of the same ratings may need more of these."""
    config = replace(SMALL, tasks=("reflection", "imitation"), validation_share=0, k=4)
    config = replace(config, limits={"reflection": 8, "imitation": 20})
    model = ScriptedGenerator(usable)
    manifest = build(dataset, tmp_path, config, reflector=by(model, "teacher"))
    assert len(model.requests) == manifest["tasks"]["reflection"]["count"] == 8
    assert manifest["tasks"]["imitation"]["count"] == 20


def test_what_was_dropped_is_counted(dataset, tmp_path):
    config = replace(SMALL, tasks=("reflection", "imitation"), validation_share=0)
    config = replace(config, limits={"reflection": 8, "imitation": 2})
    generator = ScriptedGenerator(lambda request: "no tags")
    manifest = build(dataset, tmp_path, config, writer=by(generator, "bad"))
    assert manifest["reflections_dropped"] == {"tags missing": 8}
    assert list(manifest["tasks"]) == ["imitation"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("visits",)}, "tasks has"),
        ({"tasks": ()}, "tasks is empty"),
        ({"limits": {"visits": 3}}, "limits has"),
        ({"sources": ("humans",)}, "sources has"),
        ({"visits": VisitConfig(items_per_page=3)}, "items a page"),
        ({"site": SiteConfig(horizon=3)}, "up to 5 pages"),
        ({"sources": ()}, "sources is empty"),
        ({"validation_share": 1.0}, "validation_share is 1.0, expected 0 <= share < 1"),
        ({"hidden_mean_share": 1.5}, "hidden_mean_share is 1.5"),
        ({"profile_share": 0.0}, "profile_share is 0.0, expected 0 < share < 1"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_bad_arguments(dataset, tmp_path):
    with pytest.raises(ValueError, match="policy_id is 'template'.* name the model"):
        build(dataset, tmp_path, writer=by(ScriptedGenerator([]), "template"))
    limited = replace(SMALL, session=replace(SMALL.session, context_tokens=500))
    with pytest.raises(ValueError, match="count_tokens"):
        build(dataset, tmp_path, limited)
    with pytest.raises(ValueError, match="no user"):
        build(dataset, tmp_path, users=[])
    with pytest.raises(ValueError, match="unknown user"):
        build(dataset, tmp_path, users=["nobody"])


def test_a_changed_target_changes_only_replies(tmp_path):
    before, after = (toy(change=("u04", 31, rating)) for rating in (1.0, 5.0))
    config = replace(SMALL, tasks=("imitation",), limits={}, ratings_per_user=None)
    build(before, tmp_path / "a", config)
    build(after, tmp_path / "b", config)
    pairs = [{e.example_id: e for e in read_examples(tmp_path / name)} for name in ("a", "b")]
    differing = [k for k in pairs[0] if pairs[0][k] != pairs[1][k]]
    assert pairs[0].keys() == pairs[1].keys() and len(differing) == 1
    old, new = (p[differing[0]].messages for p in pairs)
    assert old[:-1] == new[:-1]
    assert (old[-1].content, new[-1].content) == ("1", "5")


def test_no_more_visits_are_reconstructed_than_the_limits_need(dataset, tmp_path):
    said = []
    limits = SMALL.limits | {"visit": 3, "world_model": 4}
    config = replace(SMALL, limits=limits, validation_share=0)
    manifest = build(dataset, tmp_path / "few", config, say=said.append)
    assert "reconstructing the visits of 4 users" in said
    counts = {task: entry["count"] for task, entry in manifest["tasks"].items()}
    assert counts == limits
