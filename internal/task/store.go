// SPDX-License-Identifier: Apache-2.0

package task

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// store is two files. Policies are synced to disk and outlive a reboot. Tasks
// cannot outlive one, so theirs is not synced, which the page cache makes good
// for a process that is killed, and is begun anew after a reboot.
type store struct {
	policies *bbolt.DB // nil for a private engine, which only reads them
	tasks    *bbolt.DB
	boot     string
}

// The buckets of tasks.db, and the one of policies.db.
const (
	metaBucket       = "meta"
	liveBucket       = "live"
	endedBucket      = "ended"
	numberingsBucket = "numberings"
	leftoversBucket  = "leftovers"
	policiesBucket   = "policies"
)

const (
	policiesFile = "policies.db"
	tasksFile    = "tasks.db"

	// lockPatience is how long to wait for a `run` that is reading policies.
	lockPatience = 5 * time.Second
)

func openStore(dir string, private bool) (*store, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	s := &store{boot: boot}
	if !private {
		s.policies, err = openDB(filepath.Join(dir, policiesFile), false, policiesBucket)
		if err != nil {
			return nil, err
		}
	}
	s.tasks, err = openDB(filepath.Join(dir, tasksFile), true,
		metaBucket, liveBucket, endedBucket, numberingsBucket, leftoversBucket)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func openDB(path string, noSync bool, buckets ...string) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockPatience, NoSync: noSync, NoGrowSync: noSync, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
	})
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), db.Close())
	}
	return db, nil
}

// Close closes both files.
func (s *store) Close() error {
	var errs []error
	for _, db := range []*bbolt.DB{s.policies, s.tasks} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// sameBoot forgets, and returns, what was live on an earlier boot.
func (s *store) sameBoot() (lost []record, err error) {
	stored, err := s.meta("boot")
	if err != nil || string(stored) == s.boot {
		return nil, err
	}
	if stored != nil {
		if lost, err = s.live(); err != nil {
			return nil, err
		}
	}
	return lost, s.update("begin anew after a reboot", func(tx *bbolt.Tx) error {
		for _, name := range []string{metaBucket, liveBucket, endedBucket, numberingsBucket, leftoversBucket} {
			if err := tx.DeleteBucket([]byte(name)); err != nil {
				return err
			}
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		return tx.Bucket([]byte(metaBucket)).Put([]byte("boot"), []byte(s.boot))
	})
}

func (s *store) meta(key string) (value []byte, err error) {
	err = s.tasks.View(func(tx *bbolt.Tx) error {
		value = append([]byte(nil), tx.Bucket([]byte(metaBucket)).Get([]byte(key))...)
		return nil
	})
	if len(value) == 0 {
		return nil, err
	}
	return value, err
}

func (s *store) setMeta(key string, value []byte) error {
	return s.update("store "+key, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(metaBucket)).Put([]byte(key), value)
	})
}

// trusted returns the cookies that setTrusted stored.
func (s *store) trusted() (cookies []uint64, err error) {
	data, err := s.meta("trusted")
	if err != nil || data == nil {
		return nil, err
	}
	return cookies, json.Unmarshal(data, &cookies)
}

func (s *store) setTrusted(cookies map[uint64]bool) error {
	data, err := json.Marshal(slices.Sorted(maps.Keys(cookies)))
	if err != nil {
		return err
	}
	return s.setMeta("trusted", data)
}

// sequence continues the named sequence of numbers.
func (s *store) sequence(name string, first uint32) (*sequence, error) {
	stored, err := s.meta(name)
	if err != nil {
		return nil, err
	}
	q := &sequence{reserve: func(upTo uint32) error {
		return s.setMeta(name, binary.BigEndian.AppendUint32(nil, upTo))
	}}
	q.startAfter(first - 1)
	if len(stored) == 4 {
		q.startAfter(binary.BigEndian.Uint32(stored))
	}
	return q, nil
}

func (s *store) putLive(r record) error {
	return s.put("store task "+r.ID, liveBucket, key32(r.Number), r)
}

func (s *store) deleteLive(number uint32) error {
	return s.update("store task", func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(liveBucket)).Delete(key32(number))
	})
}

// end moves a task to those that have ended, and forgets one of these if it is
// not 0. What is left of the task in its cgroup is kept with it.
func (s *store) end(r record, left *leftover, forget uint32) error {
	return s.update("store end of task "+r.ID, func(tx *bbolt.Tx) error {
		if err := tx.Bucket([]byte(liveBucket)).Delete(key32(r.Number)); err != nil {
			return err
		}
		if err := put(tx, endedBucket, key32(r.Number), r); err != nil {
			return err
		}
		if left != nil {
			if err := put(tx, leftoversBucket, key64(left.CgroupID), left); err != nil {
				return err
			}
		}
		if forget == 0 {
			return nil
		}
		return tx.Bucket([]byte(endedBucket)).Delete(key32(forget))
	})
}

func (s *store) live() ([]record, error)        { return all[record](s.tasks, liveBucket) }
func (s *store) ended() ([]record, error)       { return all[record](s.tasks, endedBucket) }
func (s *store) leftovers() ([]leftover, error) { return all[leftover](s.tasks, leftoversBucket) }

func (s *store) deleteLeftover(cgroupID uint64) error {
	return s.update("store leftover cgroup", func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(leftoversBucket)).Delete(key64(cgroupID))
	})
}

func (s *store) numbering(agent string) (n *numbering, err error) {
	err = s.tasks.View(func(tx *bbolt.Tx) error {
		data := tx.Bucket([]byte(numberingsBucket)).Get([]byte(agent))
		if data == nil {
			return nil
		}
		n = new(numbering)
		return json.Unmarshal(data, n)
	})
	if err != nil {
		return nil, fmt.Errorf("read rule numbers of agent %s: %w", agent, err)
	}
	return n, nil
}

// putNumberings stores those that are not nil and deletes the others.
func (s *store) putNumberings(byAgent map[string]*numbering) error {
	return s.update("store rule numbers", func(tx *bbolt.Tx) error {
		return putAll(tx, numberingsBucket, byAgent)
	})
}

// putPolicies stores those that are not nil and deletes the others, all or none.
func (s *store) putPolicies(byName map[string]*storedPolicy) error {
	err := s.policies.Update(func(tx *bbolt.Tx) error {
		return putAll(tx, policiesBucket, byName)
	})
	if err != nil {
		return fmt.Errorf("store policies: %w", err)
	}
	return nil
}

// readPolicies returns the policies stored in dir, also while no engine holds
// them open.
func (s *store) readPolicies(dir string) (map[string]storedPolicy, error) {
	db := s.policies
	if db == nil {
		var err error
		path := filepath.Join(dir, policiesFile)
		if _, err = os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockPatience, ReadOnly: true})
		if err != nil {
			return nil, fmt.Errorf("open store %s: %w", path, err)
		}
		defer db.Close()
	}
	found := make(map[string]storedPolicy)
	err := db.View(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(policiesBucket))
		if bucket == nil {
			return nil
		}
		return bucket.ForEach(func(name, data []byte) error {
			var p storedPolicy
			if err := json.Unmarshal(data, &p); err != nil {
				return fmt.Errorf("policy %s: %w", name, err)
			}
			found[string(name)] = p
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	return found, nil
}

func (s *store) put(step, bucket string, key []byte, value any) error {
	return s.update(step, func(tx *bbolt.Tx) error { return put(tx, bucket, key, value) })
}

func (s *store) update(step string, fn func(*bbolt.Tx) error) error {
	if err := s.tasks.Update(fn); err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	return nil
}

func put(tx *bbolt.Tx, bucket string, key []byte, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return tx.Bucket([]byte(bucket)).Put(key, data)
}

func putAll[T any](tx *bbolt.Tx, bucket string, values map[string]*T) error {
	for key, value := range values {
		var err error
		if value == nil {
			err = tx.Bucket([]byte(bucket)).Delete([]byte(key))
		} else {
			err = put(tx, bucket, []byte(key), value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// all returns a bucket's values in the order of their keys.
func all[T any](db *bbolt.DB, bucket string) ([]T, error) {
	var values []T
	err := db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucket)).ForEach(func(_, data []byte) error {
			var value T
			if err := json.Unmarshal(data, &value); err != nil {
				return err
			}
			values = append(values, value)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read %s tasks: %w", bucket, err)
	}
	return values, nil
}

func key32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
func key64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
