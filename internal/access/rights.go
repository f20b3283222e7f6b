package access

import (
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// The accounts. Streams and buckets live in accountBackup, where the management side works. Hosts
// live in accountHosts, which has no JetStream and sees of accountBackup what it imports. So what a
// host names as the subject of a reply is a subject of its own account, in which there are no job
// subjects: the server does not hold reply subjects against a user's rights.
const (
	accountSystem = "SYS"
	accountBackup = "BACKUP"
	accountHosts  = "HOSTS"
)

// api begins the subjects of JetStream's API.
const api = "$JS.API."

// infoSubject stands for CONSUMER.INFO in accountHosts. Under its own name that account's own
// JetStream would answer first: that there is none.
const infoSubject = "hosts.CONSUMER.INFO"

// responseThreshold is how long the server remembers where the next reply to a request goes. Pulls
// are answered by a heartbeat every 10 s.
const responseThreshold = time.Minute

// controlReply bounds how long a host may take to answer a control request.
const controlReply = time.Minute

// anyService is what accountBackup exports: all of it, as one service. What can be reached is decided
// by the imports, of which the operator makes one account's, and by the rights of its users. It is one
// export because the server ends a message that is about to pass the same export a second time: a
// reply to a host can so never become a request in that host's account, such as an event of another.
const anyService = ">"

// imported are the services of accountBackup that accountHosts imports: what the hosts' workers need.
func imported() []string {
	return []string{
		api + "CONSUMER.MSG.NEXT.*.*",
		api + "DIRECT.GET." + messages.EventStream + "." + messages.EventSubject("*", "*", "*", "*"),
		api + "DIRECT.GET.*." + messages.JobSubject("*", "*", "*"),
		"$JS.ACK.>",
		messages.EventSubject("*", "*", "*", "*"),
		bus.BucketSubject(messages.HostBucket, messages.HostKey("*", "*")),
		bus.BucketSubject(messages.CatalogBucket, messages.CatalogKey("*", "*", "*")),
	}
}

// progressSubjects and controlSubjects go the other way: accountHosts exports them, the first as a
// stream, the second as a service.
func progressSubjects() string { return messages.ProgressSubject("*", "*", "*") }
func controlSubjects() string  { return messages.ControlSubject("*", "*") }

// rights of a user.
type rights struct{ publish, subscribe []string }

// hostRights are exactly what a host's worker needs. Zone and host are names, or templates that
// stand for them. It may read nothing that another wrote but its own commands, and make no
// consumer: one can have what is stored sent to any subject of accountBackup.
func hostRights(zone, host string) rights {
	queue := messages.JobStream(zone) + "." + bus.QueueName(host)
	return rights{
		publish: []string{
			infoSubject + "." + queue,
			api + "CONSUMER.MSG.NEXT." + queue,
			"$JS.ACK." + queue + ".>",
			api + "DIRECT.GET." + messages.EventStream + "." + messages.EventSubject(zone, host, "*", "*"),
			api + "DIRECT.GET." + messages.JobStream(zone) + "." + messages.JobSubject(zone, host, "*"),
			messages.EventSubject(zone, host, "*", "*"),
			messages.ProgressSubject(zone, host, "*"),
			bus.BucketSubject(messages.HostBucket, messages.HostKey(zone, host)),
			bus.BucketSubject(messages.CatalogBucket, messages.CatalogKey(zone, host, "*")),
		},
		subscribe: []string{bus.HostInbox(zone, host) + ".>", messages.ControlSubject(zone, host)},
	}
}
