// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"agentguard.dev/agentguard/client"
)

// MaxLine is the longest line of a log in bytes, newline included.
const MaxLine = 256 << 10

// lineStart is how every line begins. Within a JSON string its quotes would be
// escaped, so it never occurs anywhere else.
var lineStart = []byte(`{"time":`)

// encodeLine appends the record as one line to buf.
func encodeLine(buf *bytes.Buffer, r client.Record) error {
	start := buf.Len()
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		buf.Truncate(start)
		return fmt.Errorf("encode the record: %w", err)
	}
	if n := buf.Len() - start; n > MaxLine {
		buf.Truncate(start)
		return fmt.Errorf("the record has %d bytes, the most is %d", n, MaxLine)
	}
	return nil
}

// decodeLine parses one line, with or without its newline. Fields that this
// version does not know are passed over.
func decodeLine(line []byte) (client.Record, error) {
	var r client.Record
	if err := json.Unmarshal(line, &r); err != nil {
		return client.Record{}, err
	}
	if r.Time.IsZero() || r.Kind == "" {
		return client.Record{}, errors.New("no record: time and kind are missing")
	}
	return r, nil
}

// salvage finds a whole record behind the remains of one whose writer was cut
// short before its newline.
func salvage(line []byte) (client.Record, bool) {
	at := bytes.LastIndex(line, lineStart)
	if at <= 0 {
		return client.Record{}, false
	}
	r, err := decodeLine(line[at:])
	return r, err == nil
}
