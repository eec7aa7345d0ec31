/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every packet of every socket of the guard, whatever made it. */
#pragma once

#define TCP_LISTEN_STATE 10

/* A reset without payload tells the peer that it is over, and carries nothing
 * of the task's choice on a socket that the kernel's own TCP drives. */
static __always_inline bool is_bare_reset(const struct packet *p, struct bpf_sock *sk)
{
	return p->to.proto == IPPROTO_TCP && p->tcp_reset && !p->tcp_syn && !p->payload &&
	       sk->type == SOCK_STREAM;
}

/* The peer began: the listener's own answers, and sockets that came of it. */
static __always_inline bool is_inbound(struct bpf_sock *sk, const struct packet *p)
{
	struct memo *memo;

	if (p->to.proto != IPPROTO_TCP || sk->type != SOCK_STREAM)
		return false;
	if (sk->state == TCP_LISTEN_STATE)
		return true;
	memo = bpf_sk_storage_get(&memos, sk, 0, 0);
	return memo && memo->accepted;
}

/* Packets that stay on this machine: the receiver is looked up with the whole
 * tuple, so that only the socket that will really get it counts. */
static __noinline void judge_loopback(struct __sk_buff *skb, const struct task *task,
				      const struct packet *p, __u64 cgroup, struct decision *d)
{
	struct guard *guard = bpf_get_local_storage(&guards, 0);
	struct bpf_sock *sk = skb->sk;
	struct bpf_sock_tuple tuple = {};
	__u32 length;

	d->reason = REASON_NOT_OWN;
	if (task->loopback == LOOPBACK_NONE || is_many(p->to.addr))
		return;
	if (p->to.proto != IPPROTO_TCP && p->to.proto != IPPROTO_UDP)
		return;
	d->rule = RULE_LOOPBACK;
	if (task->loopback == LOOPBACK_TASK) {
		length = tuple_of(&tuple, p->from, p->from_port, &p->to);
		if (receiver(skb, p->to.proto, &tuple, length, guard->level, cgroup) ==
		    OWNER_OTHER) {
			d->rule = RULE_REPLY;
			sk = sk ? bpf_sk_fullsock(sk) : NULL;
			if (!sk || !is_inbound(sk, p)) {
				d->rule = RULE_NONE;
				return;
			}
		}
	}
	d->reason = d->rule == RULE_REPLY ? REASON_REPLY : REASON_LOOPBACK;
	d->allow = true;
}

static __always_inline void judge_ingress(const struct task *task, const struct packet *p,
					  struct decision *d)
{
	struct flow flow = p->to;

	flow.port = p->from_port;
	flow.direction = DIRECTION_INGRESS;
	if (find_rule(task, &flow, d))
		d->reason = REASON_REPLY;
}

static __always_inline bool socket_destination(struct sock *sk, __u8 proto, struct flow *flow)
{
	flow->proto = proto;
	flow->port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6)
		BPF_CORE_READ_INTO(&flow->addr, sk, __sk_common.skc_v6_daddr);
	else
		map_ipv4(flow->addr, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	return flow->port;
}

/* What the packet was addressed to before the host's NAT, by the connection
 * tracking that NAT needs. Exact, where the socket of datagrams can have
 * changed its mind since. */
static __always_inline bool tracked_destination(struct __sk_buff *skb, struct flow *flow)
{
	unsigned long tracked;
	struct nf_conn *connection;

	if (!bpf_core_type_exists(struct nf_conn) || !bpf_core_field_exists(struct sk_buff, _nfct))
		return false;
	tracked = BPF_CORE_READ((struct sk_buff *)untyped(skb), _nfct);
	connection = (struct nf_conn *)(tracked & ~(unsigned long)CONNTRACK_KIND);
	if (!connection || (tracked & CONNTRACK_KIND) >= CONNTRACK_REPLY)
		return false;
	BPF_CORE_READ_INTO(&flow->addr, connection, tuplehash[0].tuple.dst.u3.all);
	if (BPF_CORE_READ(connection, tuplehash[0].tuple.src.l3num) == AF_INET)
		map_ipv4(flow->addr, flow->addr[0]);
	flow->port = bpf_ntohs(BPF_CORE_READ(connection, tuplehash[0].tuple.dst.u.all));
	flow->proto = BPF_CORE_READ(connection, tuplehash[0].tuple.dst.protonum);
	return flow->port;
}

/* Every destination that the socket was allowed, by the rules of now. */
static __always_inline bool all_permitted(const struct memo *memo, const struct task *task,
					  struct decision *d)
{
	if (!memo->count || memo->count > MAX_ASKED)
		return false;
	for (int i = 0; i < MAX_ASKED; i++) {
		struct flow flow = memo->asked[i];

		if (i < memo->count && !find_rule(task, &flow, d))
			return false;
	}
	return true;
}

/* The packet carries another address than was asked for: the host's own NAT
 * has put a backend's there, or a load balancer above has. Where the operator,
 * not the task, rules the namespace, what was asked for counts, and is from
 * then on where the packet goes. */
__noinline int judge_asked(struct __sk_buff *skb, const struct task *task, struct packet *p,
			   struct decision *d)
{
	struct bpf_sock *sk = skb->sk;
	struct decision other = {};
	struct flow flow = {};
	struct memo *memo;
	struct sock *raw;
	__u64 netns;
	__u32 *flags;

	if (!task || !p || !d)
		return 0;
	if (p->to.proto != IPPROTO_TCP && p->to.proto != IPPROTO_UDP)
		return 0;
	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	if (!sk || sk->protocol != p->to.proto || sk->type == SOCK_RAW)
		return 0;
	raw = untyped(sk);
	netns = netns_of(raw);
	flags = bpf_map_lookup_elem(&namespaces, &netns);
	if (!flags || !(*flags & NAMESPACE_TRUSTED))
		return 0;

	/* TCP's packets go where the socket is connected to. */
	if (p->to.proto == IPPROTO_TCP && !socket_destination(raw, IPPROTO_TCP, &flow))
		return 0;
	if (p->to.proto == IPPROTO_UDP && tracked_destination(skb, &flow) &&
	    !same_flow(&flow, &p->to)) {
		if (find_rule(task, &flow, &other))
			*d = other;
		return 0;
	}
	memo = bpf_sk_storage_get(&memos, sk, 0, 0);
	if (memo && memo->rewritten) {
		if (!all_permitted(memo, task, &other))
			return 0;
		flow = memo->asked[0];
	} else if (p->to.proto != IPPROTO_TCP || !find_rule(task, &flow, &other)) {
		return 0;
	}
	*d = other;
	p->to = flow;
	return 0;
}

/* Of a packet that no rule names. */
static __always_inline void judge_further(struct __sk_buff *skb, struct bpf_sock *sk,
					  const struct task *task, struct packet *p, __u64 cgroup,
					  struct decision *d)
{
	if (d->reason == REASON_RESOLVER)
		return; /* deny, whoever it is that listens */
	if (skb->ifindex == LOOPBACK_IFINDEX) {
		judge_loopback(skb, task, p, cgroup, d);
	} else if (is_inbound(sk, p)) {
		d->reason = REASON_INGRESS;
		judge_ingress(task, p, d);
	} else if (p->to.proto == IPPROTO_UDP) {
		judge_ingress(task, p, d);
	}
	if (!d->allow)
		judge_asked(skb, task, p, d);
	if (d->reason == REASON_NO_RULE && is_quic(task, &p->to))
		d->reason = REASON_QUIC;
}

/* TCP and UDP begin where a hook in front of packets judges them, and TCP
 * with a SYN once more, because a deferred one comes late. */
static __always_inline bool begins(struct bpf_sock *socket, const struct packet *p)
{
	struct bpf_sock *sk;
	struct memo *memo;

	if (p->to.proto == IPPROTO_TCP)
		return p->tcp_syn;
	if (p->to.proto == IPPROTO_UDP)
		return false;
	sk = bpf_sk_fullsock(socket);
	memo = sk ? bpf_sk_storage_get(&memos, sk, 0, 0) : NULL;
	return !memo || !is_noted(memo, &p->to);
}

/* Whether nothing has been said yet of where the packet goes. */
static __always_inline bool is_news(struct bpf_sock *sk, const struct packet *p)
{
	struct memo *memo = bpf_sk_storage_get(&memos, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	return !memo || note(memo, &p->to);
}

/* Of allowed packets: whether a hook in front of packets has had its say. A
 * listener's answers and a ping by sendto pass none. */
static __always_inline bool is_on_record(struct bpf_sock *socket, const struct sock *sk,
					 const struct flow *to)
{
	if (to->proto == IPPROTO_TCP)
		return socket->state != TCP_LISTEN_STATE;
	return to->proto == IPPROTO_UDP && KERNEL_FIELD(sk, sock, sk_protocol) == IPPROTO_UDP;
}

static __always_inline bool first_of_flow(struct bpf_sock *sk, const struct packet *p)
{
	return p->to.proto == IPPROTO_TCP ? sk->type == SOCK_STREAM : is_news(sk, p);
}

/* After a denial the next datagram is judged, and reported, where its sender
 * is known. What a load balancer rewrites goes on being judged by all of it. */
static __always_inline void forget_asked(struct bpf_sock *sk)
{
	struct memo *memo = bpf_sk_storage_get(&memos, sk, 0, 0);

	if (!memo || memo->rewritten)
		return;
	__builtin_memset(memo->asked, 0, sizeof(memo->asked));
	memo->count = 0;
}

static __noinline void report_name(struct bpf_sock *sk, const struct task *task,
				   const struct flow *flow, const struct decision *d,
				   const struct scene *scene)
{
	struct greeting *greeting = bpf_sk_storage_get(&greetings, sk, 0, 0);
	struct named_event *named = bpf_ringbuf_reserve(&events, sizeof(*named), 0);
	__u64 wake;

	if (!named) {
		stat_add(STAT_EVENTS_LOST);
		return;
	}
	wake = fill_event(&named->event, task, flow, d, scene, false);
	named->length = 0;
	named->pad = 0;
	if (greeting) {
		named->length = greeting->length;
		__builtin_memcpy(named->name, greeting->name.text, sizeof(named->name));
	}
	bpf_ringbuf_submit(named, wake);
}

/* Bound to a device, a packet for 127.0.0.1 leaves the machine: a rule for a
 * loopback address means this machine's. */
static __always_inline bool strays(const struct __sk_buff *skb, const struct flow *to)
{
	return skb->ifindex != LOOPBACK_IFINDEX && is_loopback(to->addr);
}

/* Nearly every packet: of a flow that was judged a moment ago. What could make
 * this packet another case than that one is looked at again. */
static __always_inline bool is_known(struct __sk_buff *skb, struct bpf_sock *socket,
				     const struct sock *sk, __u64 cgroup, struct flow *to,
				     struct recall *recall)
{
	return is_plain(skb, to) && !strays(skb, to) &&
	       KERNEL_FIELD(sk, sock, sk_type) != SOCK_RAW && is_on_record(socket, sk, to) &&
	       is_recent(cgroup, to, packet_count(skb->len), recall);
}

SEC("cgroup_skb/egress")
int ag_egress(struct __sk_buff *skb)
{
	struct guard *guard = bpf_get_local_storage(&guards, 0);
	struct bpf_sock *sk, *socket = skb->sk;
	struct recall recall = {};
	struct decision d = {};
	struct packet p;
	struct task *task;
	struct sock *raw;
	bool further = false;
	__u64 cgroup;
	int malformed;

	if (!socket)
		return DENY; /* no socket, nobody's packet: cannot happen in this hook */
	raw = untyped(socket);
	cgroup = ancestor_id(cgroup_of(raw), guard->level);
	if (is_known(skb, socket, raw, cgroup, &p.to, &recall))
		return ALLOW;
	task = bpf_map_lookup_elem(&tasks, &cgroup);
	p = (struct packet){};
	malformed = parse(skb, &p);
	d.begins = begins(socket, &p);

	/* The order of judgement that ARCHITECTURE.md lists. */
	if (!is_live(task, &d)) {
		/* d says why */
	} else if (malformed) {
		d.reason = malformed;
	} else if (KERNEL_FIELD(raw, sock, sk_type) == SOCK_RAW && !(task->flags & TASK_RAW)) {
		d.reason = REASON_SOCKET; /* the policy was another when it was made */
	} else if (strays(skb, &p.to)) {
		d.reason = REASON_NO_RULE;
	} else if (skb->ifindex == LOOPBACK_IFINDEX && p.to.port < STATION_PORTS &&
		   is_station_address(p.to.addr) && judge_station(skb, task, &p, &d)) {
		if (d.allow) {
			if (d.rule)
				count_packet(task, d.rule, skb->len);
			return ALLOW; /* the resolver and the relay make the records */
		}
	} else if (find_rule(task, &p.to, &d)) {
		if (!(d.flags & PERMIT_CHECKS) || may_carry(skb, task, &p, &d)) {
			/* What a payload has to show has no place in `recents`. */
			if (count_packet(task, d.rule, skb->len) && recall.wanted && !d.flags)
				keep(task, &p.to, &d, &recall, cgroup);
			if (is_on_record(socket, raw, &p.to))
				return ALLOW;
		}
		further = d.reason == REASON_NO_RULE;
	} else {
		d.reason = d.reason ?: REASON_NO_RULE; /* deny unless the rest allows */
		further = true;
	}

	sk = bpf_sk_fullsock(socket);
	if (!sk)
		return DENY;
	if (further) {
		judge_further(skb, sk, task, &p, cgroup, &d);
		if (d.allow && (!(d.flags & PERMIT_CHECKS) || may_carry(skb, task, &p, &d)))
			count_packet(task, d.rule, skb->len);
	}
	if (!d.allow && !d.reason)
		return DENY; /* held, or said before */
	if (d.allow) {
		if (is_on_record(socket, raw, &p.to) || !first_of_flow(sk, &p))
			return ALLOW;
	} else if (task && !malformed && is_bare_reset(&p, sk) &&
		   (task->state == STATE_LIVE || task->state == STATE_DYING)) {
		return ALLOW; /* of a flow that is being cut: its peer may know */
	} else if (lets_through(task, &d)) {
		count_packet(task, RULE_NONE, skb->len);
		if (!is_news(sk, &p))
			return ALLOW;
	} else {
		forget_asked(sk);
	}

	if (d.reason == REASON_INGRESS || d.rule == RULE_REPLY || d.reason == REASON_REPLY) {
		p.to.direction = DIRECTION_INGRESS;
		p.to.port = p.from_port;
	}
	count_decision(task, &d);
	struct scene scene = {
		.cgroup = cgroup,
		.cookie = bpf_get_socket_cookie(skb),
		.netns = netns_of(raw),
		.hook = HOOK_EGRESS,
	};
	if (d.reason == REASON_SNI)
		report_name(sk, task, &p.to, &d, &scene);
	else
		report_packet(task, &p.to, &d, &scene);
	return d.allow || lets_through(task, &d) ? ALLOW : DENY;
}
