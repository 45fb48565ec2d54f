package tlsengine

import "fmt"

// Alert is an alert description (RFC 8446, Section 6).
type Alert uint8

const (
	alertCloseNotify            Alert = 0
	alertUnexpectedMessage      Alert = 10
	alertBadRecordMAC           Alert = 20
	alertRecordOverflow         Alert = 22
	alertBadCertificate         Alert = 42
	alertUnsupportedCertificate Alert = 43
	alertCertificateRevoked     Alert = 44
	alertCertificateExpired     Alert = 45
	alertIllegalParameter       Alert = 47
	alertUnknownCA              Alert = 48
	alertDecodeError            Alert = 50
	alertInternalError          Alert = 80
	alertUserCanceled           Alert = 90
	alertCertificateRequired    Alert = 116
)

var alertNames = map[Alert]string{
	alertCloseNotify: "close_notify", alertUnexpectedMessage: "unexpected_message",
	alertBadRecordMAC: "bad_record_mac", alertRecordOverflow: "record_overflow",
	40: "handshake_failure", alertBadCertificate: "bad_certificate",
	alertUnsupportedCertificate: "unsupported_certificate", alertCertificateRevoked: "certificate_revoked",
	alertCertificateExpired: "certificate_expired", 46: "certificate_unknown",
	alertIllegalParameter: "illegal_parameter", alertUnknownCA: "unknown_ca", 49: "access_denied",
	alertDecodeError: "decode_error", 51: "decrypt_error", 70: "protocol_version",
	71: "insufficient_security", alertInternalError: "internal_error", alertUserCanceled: "user_canceled",
	109: "missing_extension", 110: "unsupported_extension", 112: "unrecognized_name",
	115: "unknown_psk_identity", alertCertificateRequired: "certificate_required",
	120: "no_application_protocol",
}

func (a Alert) String() string {
	if s, ok := alertNames[a]; ok {
		return s
	}
	return fmt.Sprintf("alert(%d)", uint8(a))
}

// alertError is an error of the peer's that has to be answered with an alert.
type alertError struct {
	alert  Alert
	reason string
}

func (e *alertError) Error() string {
	return fmt.Sprintf("tls: %s (it was sent the alert %v)", e.reason, e.alert)
}

func fatal(a Alert, format string, args ...any) error {
	return &alertError{a, fmt.Sprintf(format, args...)}
}

// RemoteAlert is a fatal alert that the peer sent.
type RemoteAlert struct{ Alert Alert }

func (e *RemoteAlert) Error() string { return "tls: the peer sent the alert " + e.Alert.String() }
