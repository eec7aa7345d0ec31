/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a TLS ClientHello says of the server that it is for (RFC 8446 4.1.2,
 * RFC 6066 3). Read strictly: what two readers could understand differently is
 * bad, whatever a server would make of it. */
#pragma once

#define TLS_RECORD_HANDSHAKE 22
#define TLS_CLIENT_HELLO 1
#define TLS_SERVER_NAME 0
#define TLS_HOST_NAME 0
#define TLS_ENCRYPTED_HELLO 0xfe0d
#define TLS_ENCRYPTED_HELLO_INNER 1

#define TLS_RECORD_HEADER 5 /* type, version, length */
#define TLS_RECORD_MAX 16384
#define TLS_HELLO_HEADER 4 /* type, length */
#define TLS_HELLO_MIN 41   /* no session id, one cipher suite, no extensions */
#define TLS_SESSION_MAX 32 /* of a session id */
#define TLS_EXTENSION_HEADER 4

/* Only HELLO_NAMED can lead to an allowance, only HELLO_INCOMPLETE to waiting. */
enum hello_verdict {
	HELLO_NOT_TLS,	  /* begins no handshake record of TLS 1.0 to 1.3 */
	HELLO_BAD,	  /* does, but it holds no whole and well-formed ClientHello */
	HELLO_INCOMPLETE, /* headers are right; the rest is not there, and nothing of it read */
	HELLO_NO_NAME,
	HELLO_ECH, /* partly encrypted: the name in clear need not be the one meant */
	HELLO_NAMED,
};

struct hello {
	__u32 offset;	   /* of the connection's first payload byte, within the packet */
	__u32 length;	   /* of the payload, which may go on after the ClientHello */
	__u32 name_length; /* the answer's; 0 unless HELLO_NAMED */
};

/* As they stand at the beginning, up to the length of the session id. */
struct hello_start {
	__u8 record_type;
	__u8 record_major;
	__u8 record_minor;
	__be16 record_length;
	__u8 type;
	__u8 length_high;
	__be16 length;
	__u8 major;
	__u8 minor;
	__u8 random[32];
	__u8 session_length;
} __attribute__((packed));

/* A walk along the extensions, and what it has met. */
struct extensions {
	struct __sk_buff *skb;
	__u32 at;
	__u32 end;
	__u32 name; /* offset of server_name's content; 0 if not met */
	__u32 name_length;
	__u32 encrypted; /* bool */
};

struct spelling {
	struct __sk_buff *skb;
	struct name *name;
	__u32 at;
	__u32 length;
	__u32 done; /* characters */
	__u32 last; /* character */
};

/* One extension; a bad one ends the walk before the end. */
static long read_extension(__u32 i, struct extensions *e)
{
	struct {
		__be16 type;
		__be16 length;
	} head;
	__u32 content = e->at + sizeof(head);
	__u32 length;
	__u8 kind;

	if (bpf_skb_load_bytes(e->skb, e->at, &head, sizeof(head)))
		return 1;
	length = bpf_ntohs(head.length);
	if (content + length > e->end)
		return 1;
	if (head.type == bpf_htons(TLS_SERVER_NAME)) {
		if (e->name)
			return 1;
		e->name = content;
		e->name_length = length;
	} else if (head.type == bpf_htons(TLS_ENCRYPTED_HELLO)) {
		/* The inner one, which a front end passes on, is just a mark. */
		if (length != 1 || bpf_skb_load_bytes(e->skb, content, &kind, 1) ||
		    kind != TLS_ENCRYPTED_HELLO_INNER)
			e->encrypted = true;
	}
	e->at = content + length;
	return 0;
}

static __always_inline bool is_host_char(__u32 c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

/* One character, to its place from the end; a bad one ends the spelling early. */
static long spell(__u32 i, struct spelling *s)
{
	__u32 place = s->length - 1 - i;
	__u8 byte;
	__u32 c;

	if (place >= MAX_NAME || bpf_skb_load_bytes(s->skb, s->at + i, &byte, 1))
		return 1;
	c = byte >= 'A' && byte <= 'Z' ? byte | 0x20 : byte;
	if (!is_host_char(c) || (c == '.' && s->last == '.'))
		return 1;
	s->name->text[place] = c;
	s->last = c;
	s->done++;
	return 0;
}

/* The content of server_name: a list of exactly one host name. */
static __always_inline int read_name(const struct extensions *e, struct hello *hello,
				     struct name *name)
{
	struct {
		__be16 list_length;
		__u8 type;
		__be16 length;
	} __attribute__((packed)) head;
	struct spelling s = {.skb = e->skb, .name = name, .last = '.'};
	__u32 length;
	__u8 last;

	if (e->name_length <= sizeof(head) ||
	    bpf_skb_load_bytes(e->skb, e->name, &head, sizeof(head)) ||
	    bpf_ntohs(head.list_length) != e->name_length - 2 || head.type != TLS_HOST_NAME ||
	    bpf_ntohs(head.length) != e->name_length - sizeof(head))
		return HELLO_BAD;
	s.at = e->name + sizeof(head);
	length = e->name_length - sizeof(head);
	if (bpf_skb_load_bytes(e->skb, s.at + length - 1, &last, 1))
		return HELLO_BAD;
	if (last == '.')
		length--;
	if (!length || length >= MAX_NAME)
		return HELLO_BAD;

	s.length = length;
	bpf_loop(length, spell, &s, 0);
	if (s.done != length || s.last == '.')
		return HELLO_BAD;
	barrier_var(length); /* 6.1 has forgotten what it is at most */
	if (length >= MAX_NAME)
		return HELLO_BAD;
	name->text[length] = 0;
	hello->name_length = length;
	return HELLO_NAMED;
}

/* What the first bytes say, as far as they go: HELLO_NAMED if all of the
 * ClientHello is there to be read. */
static __always_inline int judge_start(const struct hello_start *start, __u32 length)
{
	__u32 record = bpf_ntohs(start->record_length);

	if (start->record_type != TLS_RECORD_HANDSHAKE)
		return HELLO_NOT_TLS;
	if (length > offsetof(struct hello_start, record_major) && start->record_major != 3)
		return HELLO_NOT_TLS;
	if (length > offsetof(struct hello_start, record_minor) &&
	    (start->record_minor < 1 || start->record_minor > 3))
		return HELLO_NOT_TLS;
	if (length >= offsetof(struct hello_start, type) &&
	    (record < TLS_HELLO_HEADER + TLS_HELLO_MIN || record > TLS_RECORD_MAX))
		return HELLO_BAD;
	if (length > offsetof(struct hello_start, type) && start->type != TLS_CLIENT_HELLO)
		return HELLO_BAD;
	/* The record holds the whole of it, and nothing else. */
	if (length >= offsetof(struct hello_start, major) &&
	    (start->length_high || bpf_ntohs(start->length) + TLS_HELLO_HEADER != record))
		return HELLO_BAD;
	return length < TLS_RECORD_HEADER + record ? HELLO_INCOMPLETE : HELLO_NAMED;
}

/* Reads the ClientHello that the payload begins with: an enum hello_verdict.
 * For HELLO_NAMED it fills name->text as a key of `names` has it, up to its
 * zero byte: at most MAX_NAME - 1 characters, which are letters, digits, "-",
 * "_" and single dots between them. Otherwise the text is undefined.
 * name->bits and name->owner are the caller's. The packet may be paged. */
__noinline int read_hello(struct __sk_buff *skb, struct hello *hello, struct name *name)
{
	if (!hello || !name)
		return HELLO_NOT_TLS;

	struct extensions e = {.skb = skb};
	struct hello_start start = {};
	/* Signed: of an unsigned one 6.1 does not see that it is not 0. */
	__s32 length = hello->length;
	__be16 list_length;
	__u8 methods;
	int verdict;

	hello->name_length = 0;
	if (length <= 0)
		return HELLO_NOT_TLS;
	if (length > (__s32)sizeof(start))
		length = sizeof(start);
	if (bpf_skb_load_bytes(skb, hello->offset, &start, length))
		return HELLO_NOT_TLS;
	verdict = judge_start(&start, hello->length);
	if (verdict != HELLO_NAMED)
		return verdict;
	if (start.major != 3 || start.minor < 1 || start.minor > 3 ||
	    start.session_length > TLS_SESSION_MAX)
		return HELLO_BAD;

	e.end = hello->offset + TLS_RECORD_HEADER + bpf_ntohs(start.record_length);
	e.at = hello->offset + sizeof(start) + start.session_length;

	/* Cipher suites, two bytes each. */
	if (e.at + 2 > e.end || bpf_skb_load_bytes(skb, e.at, &list_length, 2))
		return HELLO_BAD;
	if (!list_length || bpf_ntohs(list_length) % 2)
		return HELLO_BAD;
	e.at += 2 + bpf_ntohs(list_length);

	/* Compression methods. */
	if (e.at + 1 > e.end || bpf_skb_load_bytes(skb, e.at, &methods, 1) || !methods)
		return HELLO_BAD;
	e.at += 1 + methods;

	if (e.at == e.end)
		return HELLO_NO_NAME; /* TLS 1.2 and before can do without extensions */
	if (e.at + 2 > e.end || bpf_skb_load_bytes(skb, e.at, &list_length, 2))
		return HELLO_BAD;
	e.at += 2;
	if (e.at + bpf_ntohs(list_length) != e.end)
		return HELLO_BAD;
	bpf_loop(bpf_ntohs(list_length) / TLS_EXTENSION_HEADER, read_extension, &e, 0);
	if (e.at != e.end)
		return HELLO_BAD;
	if (e.encrypted)
		return HELLO_ECH;
	if (!e.name)
		return HELLO_NO_NAME;
	return read_name(&e, hello, name);
}
