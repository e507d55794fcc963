"""Every limit and timeout of the fabric, in one frozen object with the unit last in each name."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Config"]

WIRE_LIMITS = {"topic_bytes_max": 255, "selector_bytes_max": 65_536, "group_partitions": 256}
"What no record has room for more of."


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The knobs of a node. Every field has a default that suits a LAN; a test reaches every limit."""

    # -- addresses -----------------------------------------------------------------------------
    port: int = 0
    "TCP port of the inbox; 0 lets the system choose. Give a fixed one to be somebody's seed."
    ipc: bool = True
    "Offer ipc endpoints to peers on the same host. Off where libzmq lacks ipc (Windows wheels)."
    mdns: bool = True
    "Announce and browse by mDNS on the node's interfaces."
    registry: bool = True
    "Announce and browse in the same-host registry (files under the user's runtime directory)."
    force_waker_thread: bool = False
    "Poll sockets from a helper thread even where the event loop could (as on Windows' Proactor)."

    # -- batches -------------------------------------------------------------------------------
    batch_bytes: int = 64 * 1024
    "An open batch of a topic is sealed when its body reaches this size."
    batch_messages_max: int = 65_536
    "Messages in one batch, at most; more in a received batch is a protocol error."
    frame_bytes_max: int = 64 * 1024 * 1024
    "Any single frame, at most (libzmq's MAXMSGSIZE): larger ones close the connection."
    inline_bytes: int = 64 * 1024
    "Bytes values and array buffers from this size on travel as ZeroMQ frames of their own."
    buffers_per_batch_max: int = 1024
    "Frames of their own beside one batch, at most."
    shared_memory_bytes: int = 64 * 1024 * 1024
    """Memory that large buffers are lent in to peers on the same host (Linux), at most; 0 turns it off. When all of it
    is in use they travel through the sockets."""
    shared_memory_min_bytes: int = 128 * 1024
    "Buffers from this size on are lent."
    shared_memory_blocks_max: int = 64
    "Buffers that are lent at one time, at most: each costs every process a file descriptor."

    # -- publish / subscribe -------------------------------------------------------------------
    outlet_queue_bytes: int = 64 * 1024 * 1024
    "Sent but not yet taken by one slow subscriber's connection, about; beyond it batches are lost for it."
    outlet_filter_bytes: int = 4 * 1024 * 1024
    """All different subscriptions at the outlet together; libzmq needs up to 50 times as much memory for them. Beyond
    it the outlet ends all of its connections, and those who subscribe honestly come back."""
    buffer_bytes: int = 16 * 1024 * 1024
    "Default bound of a subscription's buffer."
    handler_threads_max: int = 8
    "Threads that run `def` handlers, per node."
    topics_max: int = 100_000
    "Topics one node may publish, and the most that it accepts from one peer."
    patterns_max: int = 10_000
    "Subscriptions one node may hold, and the most that it accepts from one peer."
    topic_bytes_max: int = 255
    "Length of a topic or pattern."
    inboxes_max: int = 200_000
    "Streams (producer, topic) that a node keeps positions for."

    # -- delivery ------------------------------------------------------------------------------
    window_bytes: int = 16 * 1024 * 1024
    "Default of a reliable publisher's window: sent and not yet processed by everybody."
    window_messages_max: int = 1_000_000
    "Messages in a window, at most."
    history_bytes_max: int = 64 * 1024 * 1024
    "Acknowledged messages kept for late joiners (`history=`), at most, per topic."
    reorder_bytes: int = 32 * 1024 * 1024
    "Batches that wait in one subscription for an earlier one of their stream."
    ack_delay_s: float = 0.01
    "An ack waits this long for more to come, unless the publisher asked for it at once."
    ack_bytes: int = 512 * 1024
    "Received bytes after which an ack waits no longer."
    repair_delay_s: float = 0.01
    "A gap is given this long, jittered, to close by itself before repair is asked for."
    repair_retry_s: float = 0.1
    "Pause before the same repair is asked for again; doubles each time."
    repair_retry_s_max: float = 2.0
    "Longest pause between repair requests."
    repair_attempts_max: int = 30
    "Requests without any answer after which a gap is given up and reported."
    repair_reply_bytes: int = 1024 * 1024
    "Bytes sent in answer to one repair request; the rest is asked for again."
    repair_bytes_per_s: int = 256 * 1024 * 1024
    "Repairs one peer gets: a small request cannot buy an unbounded answer."
    position_interval_s: float = 0.05
    "First pause before a publisher repeats how far a stream has come; doubles while nothing changes."
    position_interval_s_max: float = 1.0
    "Longest such pause. Streams that everybody has acknowledged are not repeated."
    gap_settle_s: float = 1.0
    "How long the last messages of an at-most-once stream may be late before they count as lost."
    unsettled_max: int = 10_000
    'Messages that a subscription with `ack="manual"` may hold before it must settle some.'
    grace_s: float = 10.0
    "How long a reliable publisher waits for a subscriber that is stuck or gone before it is given up."
    evict_slow: bool = False
    "Give up slow subscribers that filled the window for `grace_s` even though they make progress."

    # -- services ------------------------------------------------------------------------------
    services_max: int = 10_000
    "Services one node may provide, and the most of one peer that are looked at."
    service_concurrency: int = 100
    "Default of how many calls of one `async def` service are worked on at one time."
    service_waiting_max: int = 10_000
    "Requests that wait for one service's turn; more are refused as overloaded."
    service_threads_max: int = 32
    "Threads that run `def` services, per node, and the default concurrency of each."
    requests_max: int = 100_000
    "Requests of one node that have not ended."
    request_timeout_s: float = 10.0
    "Default timeout of a request."
    request_retry_s: float = 0.05
    "First pause of an idempotent request that every provider refused or left; doubles each time."
    request_retry_s_max: float = 2.0
    "Longest such pause."
    stream_bytes: int = 1024 * 1024
    "Items of a streamed reply that may be unread at the client."
    replies_kept_max: int = 10_000
    "Replies to idempotent requests kept for the same request to come again."
    replies_kept_bytes: int = 16 * 1024 * 1024
    "Bytes of such replies, at most."

    # -- peers ---------------------------------------------------------------------------------
    heartbeat_interval_s: float = 1.0
    "A peer that got nothing else from us in this time gets a heartbeat."
    peer_timeout_s: float = 5.0
    "A peer that was silent for this long has left."
    handshake_timeout_s: float = 3.0
    "Time for a connection's ZMTP handshake, and for a peer's answer to HELLO on one address."
    reconnect_interval_s: float = 0.1
    "First pause before a lost connection is tried again."
    reconnect_interval_s_max: float = 5.0
    "Longest pause between tries."
    peers_max: int = 1024
    "Peers a node keeps, at most; more are refused."
    connections_max: int = 4096
    "Sockets a node's context may open (libzmq's MAX_SOCKETS)."
    accepted_max: int = 4096
    """Connections that others may have to one listening socket, at most; never more than a third of the descriptors
    that the process may open. Beyond it all of them are ended, and good ones come back. Only where there is no key:
    with one strangers are hung up."""
    backlog: int = 1024
    "Connections that may wait to be accepted on each listening socket."
    dials_per_s_max: float = 200.0
    "New connections per second: forged announcements cannot make a node flood the network."
    dials_pending_max: int = 256
    """Connections that wait for their first answer at one time. With a key an eighth of it: each costs both ends about
    a millisecond of work, and when many nodes start at once all of them must finish within `handshake_timeout_s`."""
    dial_keep_s: float = 30.0
    "How long a discovered address is tried before it is forgotten (seeds are tried for ever)."
    rejoin_s: float = 3600.0
    "How long a peer that fell silent is tried again (a partition may heal, a host may wake)."
    control_records_max: int = 20_000
    "Records in one control frame."
    control_queue_frames: int = 10_000
    "Control frames that wait for one peer inside libzmq."
    channel_bytes: int = 8 * 1024 * 1024
    "Jobs, requests and replies for one peer that it has not acknowledged; beyond it their senders wait."
    channel_retry_s: float = 1.0
    "Pause before what a peer has not acknowledged is sent again; doubles each time."
    frames_per_turn_max: int = 64
    "Frames read from one socket before other tasks of the event loop get their turn."

    # -- discovery -----------------------------------------------------------------------------
    discovery_records_max: int = 4096
    "Discovered records kept per source; forged ones cannot grow memory."
    endpoints_per_peer_max: int = 16
    "Addresses of one peer that are looked at."
    address_poll_s: float = 5.0
    "How often the machine's addresses are compared with the announced ones."
    address_settle_s: float = 1.0
    "How long a changed set of addresses must stay the same before it is announced."
    registry_poll_s: float = 2.0
    "How often the same-host registry is read again."
    gossip_interval_s: float = 2.0
    "How often, at most, the same peer is sent our list of peers."

    # -- queues --------------------------------------------------------------------------------
    queue_bytes: int = 64 * 1024 * 1024
    "Default bound of the jobs that one node keeps in one queue until they are done; beyond it `push` waits."
    queues_max: int = 10_000
    "Queues that one node may have jobs in, and the most that it accepts from one peer."
    pullers_max: int = 1000
    "Pullers of one node."
    workers_max: int = 100_000
    "Pullers of all peers that a node leases jobs to."
    lease_jobs_max: int = 8192
    "Jobs in one lease, at most."
    lease_s: float = 30.0
    "Default time after which leases end that their worker's node does not renew; a lost node's end at once."
    handler_timeout_s: float = 300.0
    "Default time after which a job in a handler's hands is given to somebody else, unless the handler renews it."
    credit_jobs_max: int = 65_536
    """Jobs that a puller without `credit=` may have, at most: it adapts to how fast they are done. And how many one
    worker may do at a time."""
    credit_bytes: int = 8 * 1024 * 1024
    "Bytes of jobs that a puller may have from one node, about."
    prefetch_s: float = 0.1
    "Jobs that wait longer than this at a puller without `credit=` make it ask for fewer."
    recall_s: float = 0.02
    "Jobs that a worker has for this long, and has not begun with, may go to one that has nothing to do."
    priority_ageing_s: float = 30.0
    "Waiting for this long counts as much as one priority."
    dedupe_ids_max: int = 100_000
    "Dedupe ids that a node remembers for one queue; the oldest go first."
    dead_bytes: int = 16 * 1024 * 1024
    "Dead letters that a node keeps for one queue; the oldest go first, counted as expired."

    # -- selectors -----------------------------------------------------------------------------
    selector_bytes_max: int = 4096
    "Length of a selector."
    selector_depth_max: int = 64
    "Operators of a selector that stand inside of each other."

    # -- capture files -------------------------------------------------------------------------
    capture_chunk_bytes: int = 256 * 1024
    "A chunk of a capture file is written when it has this length..."
    capture_flush_s: float = 1.0
    "...or this age: a recorder that is killed loses no more than this."
    capture_block_bytes_max: int = 256 * 1024 * 1024
    "Any block of a capture file, at most: a forged file cannot buy more memory."

    # -- identities ----------------------------------------------------------------------------
    identities_poll_s: float = 1.0
    "How often the directory of identities is looked at: who is revoked loses its links after this long, at most."

    # -- signatures ----------------------------------------------------------------------------
    require_signatures: bool = False
    "Batches that are not signed are delivered, or stored, nowhere on this node. Those with a bad signature never are."

    # -- events --------------------------------------------------------------------------------
    events_max: int = 10_000
    "Events that wait in one `node.events()` iterator; the oldest go first, counted."

    # -- the store -----------------------------------------------------------------------------
    store_segment_bytes: int = 256 * 1024 * 1024
    "A file of the log is sealed when its batches reach this size. Retention gives whole files back."
    store_group_bytes: int = 8 * 1024 * 1024
    "Commits that share one flush to the disk, at most (one larger commit goes alone)."
    store_queue_bytes: int = 64 * 1024 * 1024
    "Commits that wait for the disk; beyond it the writer refuses more (`LimitExceeded`)."
    store_checkpoint_bytes: int = 32 * 1024 * 1024
    "The write-ahead log is folded into its file after this many bytes."
    store_reserve_bytes: int = 16 * 1024 * 1024
    "Kept aside on the disk, so that positions can be written and retention can work when it is full."
    store_marks_max: int = 1_000_000
    "Marks (producer, stream) the store remembers; those not used for longest are forgotten when a file is sealed."
    store_streams_max: int = 100_000
    "Streams in one store."
    store_open_files_max: int = 16
    "Sealed files that are open for readers at one time."
    store_record_bytes_max: int = 256 * 1024 * 1024
    "Any record of an export that is imported, at most: a forged file cannot buy more memory."
    store_threads_max: int = 8
    "Threads in which a store looks into its log: what others have at work in theirs keeps no reader waiting."
    store_readings_per_peer_max: int = 20_000
    "Topics that one peer reads from a store at once, and patterns that it watches there."

    # -- durable queues ------------------------------------------------------------------------
    store_jobs_max: int = 1_000_000
    """Jobs of one durable queue that have an entry of their own in the store's memory: they have options, or failed.
    What comes behind them waits in the log."""
    store_jobs_cache_bytes: int = 4 * 1024 * 1024
    "Jobs of one durable queue that a store keeps in memory when they were just pushed, or read."
    store_schedules_max: int = 1000
    "Schedules of one store."
    store_schedule_bytes: int = 16_384
    "One schedule with its job's value, encoded. All of them travel in one record."

    # -- groups --------------------------------------------------------------------------------
    store_groups_max: int = 1000
    "Groups that one store knows, until they are forgotten: `zfabric store groups forget`."
    store_members_max: int = 10_000
    "Members of all groups of one store."
    group_partitions: int = 64
    "Partitions of a group that a store makes: as many members can share its work. Fixed for the group's life."
    group_release_s: float = 30.0
    "A group's member that does not let go of partitions in this time, when others joined, is fenced."
    group_return_s: float = 10.0
    "How long a lost member with a name (`member=`) keeps its partitions, so that it may restart."
    group_commit_s: float = 0.05
    "What a group's member has processed is committed after this time, together with what follows."

    # -- closing -------------------------------------------------------------------------------
    close_timeout_s: float = 5.0
    "Default time for `close()`: handlers, last batches and goodbyes."

    def __post_init__(self) -> None:
        """Refuse nonsense early, naming the field."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or field.name in ("port", "shared_memory_bytes"):
                continue
            if not value > 0:
                raise ValueError(f"Config.{field.name} must be above 0, not {value!r}")
        for name, most in WIRE_LIMITS.items():
            if getattr(self, name) > most:
                raise ValueError(f"Config.{name} must be at most {most}, not {getattr(self, name)!r}")
        if self.shared_memory_bytes < 0:
            raise ValueError(f"Config.shared_memory_bytes must not be negative, not {self.shared_memory_bytes!r}")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"Config.port must be 0 to 65535, not {self.port!r}")
        if self.peer_timeout_s < 2 * self.heartbeat_interval_s:
            raise ValueError("Config.peer_timeout_s must be at least twice heartbeat_interval_s")
