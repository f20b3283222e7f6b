package bus

import (
	"context"
	"errors"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// queuesAtOnce bounds the queues that are made at a time.
const queuesAtOnce = 16

// QueueName is the name of a host's durable consumer in the stream of its zone.
func QueueName(host string) string { return "host_" + host }

// EnsureQueues makes the queues of the hosts of a zone where they are missing, for hosts that may
// not make their own. One that exists is never changed. The zone's stream has to be there.
func (b *Bus) EnsureQueues(ctx context.Context, zone string, hosts []string) error {
	for _, host := range hosts {
		if err := checkHost(zone, host); err != nil {
			return err
		}
	}
	there, err := b.queues(ctx, zone, hosts)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(queuesAtOnce)
	for _, host := range hosts {
		if there[QueueName(host)] {
			continue
		}
		there[QueueName(host)] = true // named twice: made once
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
			defer cancel()
			_, err := b.js.CreateConsumer(ctx, messages.JobStream(zone), queueConfig(zone, host, b.cfg.AckWait))
			if errors.Is(err, jetstream.ErrConsumerExists) {
				return nil
			}
			return b.fail("make the queue of "+zone+"/"+host, err)
		})
	}
	return group.Wait()
}

// queues returns which consumers are there; of one host alone it is asked for by name.
func (b *Bus) queues(ctx context.Context, zone string, hosts []string) (map[string]bool, error) {
	there := map[string]bool{}
	if len(hosts) == 0 {
		return there, nil
	}
	bound, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	if len(hosts) == 1 {
		_, err := b.js.Consumer(bound, messages.JobStream(zone), QueueName(hosts[0]))
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			return there, nil
		}
		there[QueueName(hosts[0])] = err == nil
		return there, b.fail("queue of "+zone+"/"+hosts[0], err)
	}
	stream, err := b.js.Stream(bound, messages.JobStream(zone))
	if err != nil {
		return nil, b.fail("queues of zone "+zone, err)
	}
	all, cancelAll := context.WithTimeout(ctx, listTimeout)
	defer cancelAll()
	names := stream.ConsumerNames(all)
	for name := range names.Name() {
		there[name] = true
	}
	return there, b.fail("queues of zone "+zone, names.Err())
}

func (c *Commands) config() jetstream.ConsumerConfig {
	return queueConfig(c.zone, c.host, c.bus.cfg.AckWait)
}

func queueConfig(zone, host string, ackWait time.Duration) jetstream.ConsumerConfig {
	name := QueueName(host)
	return jetstream.ConsumerConfig{
		Name:          name,
		Durable:       name,
		Description:   "nasfleet: commands of host " + host,
		FilterSubject: messages.JobSubject(zone, host, "*"),
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    maxDeliver,
		MaxAckPending: maxAckPending,
		// No InactiveThreshold: a host that was away for long must not lose its queue.
	}
}
