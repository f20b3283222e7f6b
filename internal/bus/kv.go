package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// listTimeout bounds reading a bucket where the caller has no deadline.
const listTimeout = time.Minute

// bucketStream is the stream in which JetStream keeps a KV bucket (NATS ADR-8).
func bucketStream(bucket string) string { return "KV_" + bucket }

// BucketSubject is where a key of a KV bucket is kept. Hosts publish there directly: binding a bucket
// as a client needs STREAM.INFO, which shows every key.
func BucketSubject(bucket, key string) string { return "$KV." + bucket + "." + key }

func putMsg(bucket, key string, value any) (*nats.Msg, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	m := nats.NewMsg(BucketSubject(bucket, key))
	m.Data = data
	m.Header.Set(jetstream.ExpectedStreamHeader, bucketStream(bucket))
	return m, nil
}

// deleteMsg is the marker that clients of the bucket take for a deleted key.
func deleteMsg(bucket, key string) *nats.Msg {
	m := nats.NewMsg(BucketSubject(bucket, key))
	m.Header.Set(jetstream.ExpectedStreamHeader, bucketStream(bucket))
	m.Header.Set("KV-Operation", "DEL")
	return m
}

// list calls fn for each key of a bucket that matches the filter.
func (b *Bus) list(ctx context.Context, bucket, filter string, fn func(key string, value []byte)) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, listTimeout)
		defer cancel()
	}
	bindCtx, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	kv, err := b.js.KeyValue(bindCtx, bucket)
	if err != nil {
		return b.fail("bucket "+bucket, err)
	}
	w, err := kv.Watch(ctx, filter, jetstream.IgnoreDeletes())
	if err != nil {
		return b.fail("bucket "+bucket, err)
	}
	defer func() { _ = w.Stop() }() // fails only where there is no connection left
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return b.fail("bucket "+bucket, nats.ErrConnectionClosed)
			}
			if e == nil {
				return nil // all that was there
			}
			fn(e.Key(), e.Value())
		case <-ctx.Done():
			return b.fail("bucket "+bucket, ctx.Err())
		}
	}
}

// decodeValue reads a bucket's value and holds it against its key: the server checks who may
// write a key, and nobody checks what the value claims.
func decodeValue[T any](b *Bus, key string, value []byte, keyOf func(T) string) (T, bool) {
	var v T
	err := json.Unmarshal(value, &v)
	if err == nil && keyOf(v) != key {
		err = errors.New("the value claims to be another's")
	}
	if err != nil {
		b.cfg.Log.Warn().Err(err).Str("key", key).Msg("entry left out")
	}
	return v, err == nil
}
