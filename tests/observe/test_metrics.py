"""Declarations, the text of /metrics, and tallies."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.metrics import METRICS, Metrics, add_observations, set_build_info
from proxy.observe.tally import COMMAND_BUCKETS, HistogramTally, Tally
from proxy.outcome import Outcome

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: Metrics) -> Samples:
    text, content_type = metrics.exposition()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


BAD = [
    ("another prefix", lambda m: m.counter("imap_logins_total", "Logins."), "porter_"),
    ("capitals", lambda m: m.gauge("porter_Sessions", "Sessions."), "lower case"),
    ("a counter without _total", lambda m: m.counter("porter_logins", "Logins."), "_total"),
    ("a histogram without unit", lambda m: m.histogram("porter_login_duration", "Time.", (1.0,)), "base unit"),
    ("no description", lambda m: m.gauge("porter_sessions", ""), "sentence"),
]


@pytest.mark.parametrize(("name", "declare", "message"), BAD, ids=[row[0] for row in BAD])
def test_a_bad_name_is_refused(name: str, declare: Callable[[Metrics], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare(Metrics())


def test_every_known_label_set_is_there_from_the_start() -> None:
    metrics = Metrics()
    metrics.counter("porter_login_attempts_total", "Logins.", mechanism=("LOGIN", "PLAIN"), outcome=Outcome)
    metrics.gauge("porter_backend_up", "Up.", backend=None)
    found = samples(metrics)
    assert len(found) == 2 * len(Outcome)
    assert found["porter_login_attempts_total", (("mechanism", "PLAIN"), ("outcome", "authentication_failed"))] == 0


def test_many_observations_at_once_are_the_same_as_one_by_one() -> None:
    metrics = Metrics()
    bounds = (0.1, 0.5, 1.0)
    one_by_one = metrics.histogram("porter_a_seconds", "A.", bounds)
    at_once = metrics.histogram("porter_b_seconds", "B.", bounds)
    tally = HistogramTally(at_once, bounds)
    metrics.on_flush(tally.flush)
    chance = random.Random(1)
    for seconds in [0.1, 0.5, 1.0, 0.0, 2.0, *(chance.uniform(0, 2) for _ in range(200))]:
        one_by_one.observe(seconds)
        tally.observe(seconds)
    found = samples(metrics)
    assert samples(metrics) == found  # nothing is added twice
    for (name, labels), value in found.items():
        if name.startswith("porter_a_"):
            assert found[name.replace("_a_", "_b_"), labels] == pytest.approx(value)


def test_the_number_of_buckets_has_to_fit() -> None:
    histogram = Metrics().histogram("porter_a_seconds", "A.", (0.1, 0.5))
    with pytest.raises(ValueError, match="shorter"):
        add_observations(histogram, [1, 2], 3.0)


def test_build_info_says_what_runs() -> None:
    set_build_info("1.2.3", "OpenSSL 3.5.0")
    labels = [
        dict(labels) for (name, labels), value in samples(METRICS).items() if name == "porter_build_info" and value
    ]
    assert ("1.2.3", "OpenSSL 3.5.0") in [(found["version"], found["openssl"]) for found in labels]


def test_a_tally_reaches_the_metrics() -> None:
    tally = Tally(["FETCH", "UID FETCH", "IDLE"], ["compress"])
    before = samples(METRICS)
    tally.finished("FETCH", 0.002)
    tally.finished("FETCH", 600.0)
    tally.finished("X-UNHEARD-OF", 0.001)
    tally.finished("IDLE", 1700.0)
    tally.idle(1)
    tally.idle(1)
    tally.idle(-1)
    tally.blind("compress")
    tally.blind("never seen")
    tally.bytes_from_client += 10
    tally.bytes_from_backend += 1000
    after = samples(METRICS)
    assert samples(METRICS).items() >= {k: v for k, v in after.items() if k[0].startswith("porter_")}.items()
    moved = {
        key: value - before[key]
        for key, value in after.items()
        if key[0].startswith("porter_") and "_bucket" not in key[0] and value != before[key]
    }
    assert moved == {
        ("porter_command_duration_seconds_count", (("command", "FETCH"),)): 2,
        ("porter_command_duration_seconds_sum", (("command", "FETCH"),)): 600.002,
        ("porter_command_duration_seconds_count", (("command", "OTHER"),)): 1,
        ("porter_command_duration_seconds_sum", (("command", "OTHER"),)): 0.001,
        ("porter_idle_duration_seconds_count", ()): 1,
        ("porter_idle_duration_seconds_sum", ()): 1700,
        ("porter_idle_sessions", ()): 1,
        ("porter_observer_blind_total", (("reason", "compress"),)): 1,
        ("porter_observer_blind_total", (("reason", "other"),)): 1,
        ("porter_relayed_bytes_total", (("direction", "from_client"),)): 10,
        ("porter_relayed_bytes_total", (("direction", "from_backend"),)): 1000,
    }
    bucket = "porter_command_duration_seconds_bucket"
    counts = [
        after[bucket, (("command", "FETCH"), ("le", f"{bound}"))]
        - before[bucket, (("command", "FETCH"), ("le", f"{bound}"))]
        for bound in COMMAND_BUCKETS
    ]
    assert counts == [0, 0] + [1] * (len(COMMAND_BUCKETS) - 2)


def test_the_observers_reasons_are_known() -> None:
    from proxy.imap import observer
    from proxy.observe import tally

    assert {*observer.BLIND_REASONS, "other"} == set(tally.BLIND_REASONS)


def test_a_failure_leaves_its_time_until_the_backend_is_gone() -> None:
    from proxy.backends import last_failure

    def found() -> dict[str, float]:
        return {
            dict(labels)["step"]: value
            for (name, labels), value in samples(METRICS).items()
            if name == "porter_backend_last_failure_timestamp_seconds" and ("backend", "failing") in labels
        }

    last_failure.know("failing")
    assert found() == dict.fromkeys(last_failure.STEPS, 0)
    last_failure.failed("failing", "tls")
    last_failure.failed("failing", "what nobody has heard of")
    assert {step for step, value in found().items() if value} == {"tls", "login"}
    last_failure.forget("failing")
    assert found() == {}


def test_lost_log_lines_are_counted() -> None:
    from proxy.observe import log

    key = ("porter_log_lines_dropped_total", ())
    before = samples(METRICS)[key]
    sink = log.configure(descriptor=2)
    try:
        sink.dropped += 3
        assert samples(METRICS)[key] == before + 3
        assert samples(METRICS)[key] == before + 3
    finally:
        sink._reported = sink.dropped
        log.restore()


def test_a_login_story_in_metrics() -> None:
    from proxy.session.metrics import PHASES, SessionMetrics

    session = SessionMetrics(["dovecot-1"], ["[::]:993"])
    before = samples(METRICS)
    for _ in range(3):
        session.opened("[::]:993")
    for phase in PHASES:
        session.phase(phase, 0.002)
    session.attempt("PLAIN", Outcome.OK)
    session.attempt("X-FOREIGN", Outcome.AUTHENTICATION_FAILED)
    session.logged_in("dovecot-1")
    session.logged_in("dovecot-1")
    session.closed_before_login(Outcome.TLS_FAILED)
    session.left_backend("dovecot-1")
    session.closed_after_login(Outcome.LOGGED_OUT)
    session.refused("connections_per_address")
    session.tls_failed("protocol")
    session.tls_failed("new in this OpenSSL")
    session.backend_login("dovecot-1", 0.003)
    session.backend_failed("dovecot-1", "greeting")
    session.loop_delay(0.004)
    after = samples(METRICS)
    assert after.pop(
        ("porter_backend_last_failure_timestamp_seconds", (("backend", "dovecot-1"), ("step", "greeting")))
    )
    moved = {
        (key[0], *(value for _, value in key[1])): value - before.get(key, 0)
        for key, value in after.items()
        if key[0].startswith("porter_") and not key[0].endswith(("_bucket", "_sum")) and value != before.get(key, 0)
    }
    assert moved == {
        ("porter_connections_total", "[::]:993"): 3,
        **{("porter_login_duration_seconds_count", phase): 1 for phase in PHASES},
        ("porter_login_attempts_total", "PLAIN", "ok"): 1,
        ("porter_login_attempts_total", "other", "authentication_failed"): 1,
        ("porter_sessions", "authenticated"): 1,
        ("porter_backend_sessions", "dovecot-1"): 1,
        ("porter_sessions_ended_total", "tls_failed"): 1,
        ("porter_sessions_ended_total", "logged_out"): 1,
        ("porter_connections_refused_total", "connections_per_address"): 1,
        ("porter_tls_handshake_failures_total", "protocol"): 1,
        ("porter_tls_handshake_failures_total", "other"): 1,
        ("porter_backend_failures_total", "dovecot-1", "greeting"): 1,
        ("porter_event_loop_delay_seconds_count", "master"): 1,
        ("porter_worker_sessions", "master"): 1,
        ("porter_backend_login_duration_seconds_count", "dovecot-1"): 1,
    }
