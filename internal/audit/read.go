// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"agentguard.dev/agentguard/client"
)

// source reads the records of one file, as far as they have been written.
type source struct {
	logFile
	f       *os.File
	lines   *bufio.Reader
	pending []byte // a line whose end is not there yet
	tooLong bool   // pending was longer than MaxLine and is being dropped
	damaged int
}

func openSource(file logFile) (*source, error) {
	f, err := os.Open(file.path)
	if err != nil {
		return nil, err
	}
	return &source{logFile: file, f: f}, nil
}

func (s *source) close() { s.f.Close() }

// next returns the next record, or io.EOF when there is no whole line left for
// now; it may be called again after the file has grown.
func (s *source) next() (client.Record, error) {
	for {
		line, err := s.line()
		if err != nil {
			return client.Record{}, err
		}
		if r, ok := s.decode(line); ok {
			return r, nil
		}
	}
}

func (s *source) decode(line []byte) (client.Record, bool) {
	line = bytes.TrimSuffix(line, []byte{'\n'})
	if len(line) == 0 {
		return client.Record{}, false
	}
	r, err := decodeLine(line)
	if err == nil {
		return r, true
	}
	s.damaged++
	return salvage(line)
}

// line returns the next whole line that is not too long.
func (s *source) line() ([]byte, error) {
	if s.lines == nil {
		s.lines = bufio.NewReaderSize(s.f, 16<<10)
	}
	for {
		part, err := s.lines.ReadSlice('\n')
		if len(s.pending)+len(part) > MaxLine {
			s.tooLong = true
			s.pending = s.pending[:0]
		}
		if !s.tooLong {
			s.pending = append(s.pending, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil, io.EOF
		case err != nil:
			return nil, fmt.Errorf("read audit log %s: %w", s.path, err)
		}
		line := s.pending
		s.pending = s.pending[:0]
		if s.tooLong {
			s.tooLong = false
			s.damaged++
			continue
		}
		return line, nil
	}
}

// finish counts a last line that nobody will complete, and reports.
func (s *source) finish(q Query) {
	if len(s.pending) > 0 || s.tooLong {
		s.damaged++
		s.pending, s.tooLong = nil, false
	}
	s.report(q)
}

// report tells of the damaged lines found since the last time.
func (s *source) report(q Query) {
	if s.damaged > 0 && q.Damaged != nil {
		q.Damaged(s.path, s.damaged)
	}
	s.damaged = 0
}

// Read calls fn with the records in dir that the query selects, those of all
// logs merged by time. A line that cannot be read is skipped and reported to
// q.Damaged. An error of fn ends it and is returned.
func Read(dir string, q Query, fn func(client.Record) error) error {
	m, err := openMerge(dir)
	if err != nil {
		return err
	}
	defer m.close()
	if err := limited(q, fn, m.drain); err != nil {
		return err
	}
	m.finish(q)
	return nil
}

// limited calls drain with what passes the query, and holds back to deliver only
// the newest q.Limit.
func limited(q Query, fn func(client.Record) error, drain func(func(client.Record) error) error) error {
	if q.Limit <= 0 {
		return drain(filter(q, fn))
	}
	var ring []client.Record
	seen := 0
	err := drain(filter(q, func(r client.Record) error {
		if len(ring) < q.Limit {
			ring = append(ring, r)
		} else {
			ring[seen%q.Limit] = r
		}
		seen++
		return nil
	}))
	if err != nil {
		return err
	}
	for i := range ring {
		if err := fn(ring[(seen+i)%len(ring)]); err != nil {
			return err
		}
	}
	return nil
}

func filter(q Query, fn func(client.Record) error) func(client.Record) error {
	return func(r client.Record) error {
		if !q.match(r) {
			return nil
		}
		return fn(r)
	}
}

// missing says that a file went away between listing and opening it.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
