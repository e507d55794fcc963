"""Every field of Config is reached by a test: this table tells by which."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from zfabric import Config

TESTS = Path(__file__).parents[1]
GROWING = "hostile/test_timing_limits.py::test_pauses_between_tries_grow_from_the_first_to_the_longest"
REPEATED = "hostile/test_timing_limits.py::test_positions_are_repeated_with_pauses_that_end_growing"

REACHED = {
    # addresses
    "port": "node/test_opening.py::test_a_taken_port_is_an_oserror_that_names_it",
    "ipc": "transport/test_endpoints.py::test_ipc_can_be_turned_off",
    "mdns": "discovery/test_ways.py::test_ways_can_be_turned_off",
    "registry": "discovery/test_ways.py::test_ways_can_be_turned_off",
    "force_waker_thread": "transport/test_sockets.py::test_no_wakeup_is_lost_between_sends_and_receives",
    # batches
    "batch_bytes": "node/test_events.py::test_batches_are_sealed_at_their_limits",
    "batch_messages_max": "hostile/test_data.py::test_batches_beyond_the_limits_are_refused",
    "frame_bytes_max": "hostile/test_raw.py::test_an_oversize_frame_ends_its_connection",
    "inline_bytes": "node/test_events.py::test_batches_are_sealed_at_their_limits",
    "buffers_per_batch_max": "hostile/test_data.py::test_batches_beyond_the_limits_are_refused",
    "shared_memory_bytes": "node/test_lending.py::test_memory_that_is_all_in_use_holds_nobody_up",
    "shared_memory_min_bytes": "node/test_lending.py::test_limits_of_shared_memory",
    "shared_memory_blocks_max": "node/test_lending.py::test_limits_of_shared_memory",
    # publish and subscribe
    "outlet_queue_bytes": "transport/test_outlets.py::test_a_stuck_subscriber_costs_no_more_than_its_queue",
    "outlet_filter_bytes": "hostile/test_data.py::test_a_flood_of_subscriptions_is_bounded",
    "buffer_bytes": "node/test_events.py::test_a_full_buffer_is_a_gap_of_the_right_size",
    "handler_threads_max": "node/test_events.py::test_handlers_use_a_bounded_number_of_threads",
    "topics_max": "hostile/test_control_limits.py::test_topics_and_patterns_of_a_peer_are_bounded",
    "patterns_max": "hostile/test_control_limits.py::test_topics_and_patterns_of_a_peer_are_bounded",
    "topic_bytes_max": "hostile/test_data.py::test_batches_beyond_the_limits_are_refused",
    "inboxes_max": "hostile/test_data.py::test_streams_are_bounded_and_live_ones_stay",
    # delivery
    "window_bytes": "node/test_reliable.py::test_a_full_window_raises_and_opens_again",
    "window_messages_max": "node/test_reliable.py::test_a_full_window_raises_and_opens_again",
    "history_bytes_max": "node/test_reliable.py::test_history_is_bounded_in_bytes",
    "reorder_bytes": "protocol/test_inbox.py::test_the_reorder_buffer_is_bounded",
    "ack_delay_s": "hostile/test_timing_limits.py::test_received_bytes_make_an_ack_due_at_once",
    "ack_bytes": "hostile/test_timing_limits.py::test_received_bytes_make_an_ack_due_at_once",
    "repair_delay_s": "protocol/test_inbox.py::test_a_hole_is_asked_for_after_a_moment_and_again",
    "repair_retry_s": "protocol/test_inbox.py::test_a_hole_is_asked_for_after_a_moment_and_again",
    "repair_retry_s_max": "protocol/test_inbox.py::test_a_hole_is_asked_for_after_a_moment_and_again",
    "repair_attempts_max": "protocol/test_inbox.py::test_nobody_waits_for_ever_for_an_answer",
    "repair_reply_bytes": "hostile/test_control_limits.py::test_repair_floods_get_a_bounded_answer",
    "repair_bytes_per_s": "hostile/test_control_limits.py::test_repair_floods_get_a_bounded_answer",
    "position_interval_s": REPEATED,
    "position_interval_s_max": REPEATED,
    "gap_settle_s": "protocol/test_inbox.py::test_a_loss_at_the_end_is_known_after_a_while",
    "unsettled_max": "node/test_reliable.py::test_unsettled_messages_are_bounded",
    "grace_s": "node/test_reliable.py::test_a_reader_that_does_not_return_fails_what_waits_for_it",
    "evict_slow": "node/test_reliable.py::test_slow_readers_are_given_up_only_if_asked_for",
    # signatures
    "require_signatures": "security/test_signatures.py::test_a_store_may_ask_for_signatures",
    # services
    "services_max": "protocol/test_calls.py::test_limits_of_a_node",
    "service_concurrency": "contract/test_services.py::test_defaults_come_from_the_config",
    "service_waiting_max": "protocol/test_calls.py::test_overload_is_refused_at_once",
    "service_threads_max": "contract/test_services.py::test_defaults_come_from_the_config",
    "requests_max": "protocol/test_calls.py::test_limits_of_a_node",
    "request_timeout_s": "contract/test_services.py::test_defaults_come_from_the_config",
    "request_retry_s": "protocol/test_calls.py::test_an_idempotent_call_waits_out_an_overload",
    "request_retry_s_max": "protocol/test_calls.py::test_an_idempotent_call_waits_out_an_overload",
    "stream_bytes": "contract/test_services.py::test_a_stream_is_no_further_ahead_than_stream_bytes",
    "replies_kept_max": "protocol/test_calls.py::test_kept_replies_are_given_again_and_bounded",
    "replies_kept_bytes": "protocol/test_calls.py::test_kept_replies_are_given_again_and_bounded",
    # peers
    "heartbeat_interval_s": "hostile/test_control_limits.py::test_a_silent_peer_is_given_up",
    "peer_timeout_s": "hostile/test_control_limits.py::test_a_silent_peer_is_given_up",
    "handshake_timeout_s": "hostile/test_raw.py::test_connections_that_never_finish_the_handshake_are_closed",
    "reconnect_interval_s": GROWING,
    "reconnect_interval_s_max": GROWING,
    "peers_max": "hostile/test_control_limits.py::test_hello_floods_stop_at_peers_max",
    "connections_max": "transport/test_endpoints.py::test_too_few_sockets_are_an_oserror",
    "accepted_max": "hostile/test_raw.py::test_strangers_that_keep_connections_are_shed",
    "backlog": "transport/test_endpoints.py::test_every_option_of_the_documentation_is_set",
    "dials_per_s_max": "hostile/test_addresses.py::test_forged_addresses_cannot_flood_the_network",
    "dials_pending_max": "hostile/test_addresses.py::test_forged_addresses_cannot_flood_the_network",
    "dial_keep_s": "hostile/test_timing_limits.py::test_a_discovered_address_is_forgotten",
    "rejoin_s": "hostile/test_timing_limits.py::test_a_peer_that_fell_silent_is_sought_for_a_while",
    "control_records_max": "hostile/test_control.py::test_more_records_than_the_limit_are_refused",
    "control_queue_frames": "transport/test_sockets.py::test_a_peer_that_reads_nothing_is_noticed",
    "channel_bytes": "protocol/test_channels.py::test_there_is_room_until_channel_bytes_wait",
    "channel_retry_s": "protocol/test_channels.py::test_lost_letters_are_said_again_without_a_reconnection",
    "frames_per_turn_max": "transport/test_sockets.py::test_a_burst_is_bounded_and_nothing_is_left_behind",
    # queues
    "queue_bytes": "contract/test_queues.py::test_a_full_queue_makes_pushers_wait",
    "queues_max": "contract/test_queues.py::test_queues_and_pullers_are_bounded",
    "pullers_max": "contract/test_queues.py::test_queues_and_pullers_are_bounded",
    "workers_max": "protocol/test_queues.py::test_peers_cannot_make_a_node_keep_too_much",
    "lease_jobs_max": "protocol/test_dispatcher.py::test_one_lease_is_bounded",
    "lease_s": "protocol/test_queues.py::test_leases_are_renewed_while_the_node_runs",
    "handler_timeout_s": "contract/test_unfinished_jobs.py::test_a_hung_handler_loses_its_job",
    "credit_jobs_max": "protocol/test_queues.py::test_credit_follows_how_fast_jobs_are_done",
    "credit_bytes": "protocol/test_queues.py::test_credit_is_bounded_in_bytes",
    "prefetch_s": "protocol/test_queues.py::test_credit_follows_how_fast_jobs_are_done",
    "recall_s": "protocol/test_dispatcher.py::test_idle_workers_let_busy_ones_give_back",
    "priority_ageing_s": "protocol/test_dispatcher_order.py::test_priorities_are_strict_and_nothing_starves",
    "dedupe_ids_max": "protocol/test_dispatcher_order.py::test_the_same_dedupe_id_is_the_same_job_for_a_while",
    "dead_bytes": "contract/test_unfinished_jobs.py::test_dead_letters_are_bounded",
    # selectors and capture files
    "selector_bytes_max": "wire/test_selectors.py::test_length_is_limited",
    "selector_depth_max": "wire/test_selectors.py::test_nesting_is_limited",
    "capture_chunk_bytes": "capture/test_files.py::test_chunks_have_a_size",
    "capture_flush_s": "capture/test_recorder.py::test_a_killed_recorder_loses_little",
    "capture_block_bytes_max": "capture/test_files.py::test_blocks_have_a_limit",
    # the store and its groups
    "store_record_bytes_max": "store/test_transfer.py::test_records_of_an_export_have_a_limit",
    "store_segment_bytes": "store/test_files.py::test_a_full_file_is_sealed_and_removed_when_nobody_needs_it",
    "store_group_bytes": "store/test_writer.py::test_a_group_is_bounded",
    "store_queue_bytes": "store/test_writer.py::test_the_queue_is_bounded",
    "store_checkpoint_bytes": "store/test_files.py::test_the_write_ahead_log_is_folded",
    "store_reserve_bytes": "store/test_full.py::test_a_full_disk",
    "store_marks_max": "store/test_files.py::test_marks_are_bounded",
    "store_streams_max": "store/test_files.py::test_streams_are_bounded",
    "store_open_files_max": "store/test_files.py::test_few_files_are_open",
    "store_threads_max": "durable/test_service.py::test_a_store_reads_in_a_bounded_number_of_threads",
    "store_readings_per_peer_max": "durable/test_reading.py::test_too_many_readings_of_one_peer_are_refused",
    "store_jobs_max": "durable/test_queues.py::test_the_index_is_bounded",
    "store_jobs_cache_bytes": "durable/test_queues.py::test_the_index_is_bounded",
    "store_schedules_max": "store/test_schedules.py::test_schedules_are_bounded",
    "store_schedule_bytes": "store/test_schedules.py::test_schedules_are_bounded",
    "store_groups_max": "node/test_forgetting.py::test_groups_are_bounded_and_forgotten",
    "store_members_max": "node/test_forgetting.py::test_members_are_bounded",
    "group_partitions": "store/test_groups.py::test_more_members_than_partitions_wait_their_turn",
    "group_release_s": "store/test_groups.py::test_a_partition_that_is_not_let_go_in_time_costs_the_membership",
    "group_return_s": "store/test_groups.py::test_a_member_with_a_name_that_stays_away_is_given_up",
    "group_commit_s": "store/test_groups.py::test_nothing_comes_twice_when_members_only_come_and_go_in_order",
    # discovery
    "discovery_records_max": "hostile/test_addresses.py::test_forged_addresses_cannot_flood_the_network",
    "endpoints_per_peer_max": "hostile/test_addresses.py::test_forged_addresses_cannot_flood_the_network",
    "address_poll_s": "discovery/test_interfaces.py::test_run_sleeps_as_long_as_check_asks",
    "address_settle_s": "discovery/test_interfaces.py::test_a_change_is_told_once_it_has_settled",
    "registry_poll_s": "discovery/test_registry.py::test_quiet_registries_are_not_read_again",
    "gossip_interval_s": "hostile/test_timing_limits.py::test_lists_of_peers_are_sent_with_growing_pauses",
    # identities
    "identities_poll_s": "security/test_identities.py::test_revoked_identities_lose_their_links",
    # events and closing
    "events_max": "node/test_events.py::test_events_are_bounded_and_dropped_ones_counted",
    "close_timeout_s": "node/test_closing.py::test_the_default_timeout_is_the_config_s",
}


def test_every_field_is_in_the_table() -> None:
    """A new field needs a test that reaches it, and a line here; one that is gone needs none."""
    assert [field.name for field in fields(Config) if field.name not in REACHED] == []
    assert REACHED.keys() <= {field.name for field in fields(Config)}


@pytest.mark.parametrize("field", REACHED)
def test_the_test_exists_and_is_about_the_field(field: str) -> None:
    """The file has a test of that name, and sets or names the field."""
    file, _, name = REACHED[field].partition("::")
    source = (TESTS / file).read_text("utf-8")
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)

    assert name in {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, functions)}
    assert field in source
