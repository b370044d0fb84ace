"""Name the parameters of camera URLs whose values are no secrets."""

_GROUPS = (
    # which camera and which of its streams
    "camera cam channel channels ch chan chn chid channelid channelno device deviceno index idx",
    "stream streamno streamidx streamtype streamprofile substream subtype subcodec profile",
    "profileid preset view main sub live src no nr n num number name",
    # picture
    "width height w h size resolution res fps req_fps framerate rate bitrate videobitrate",
    "videomaxbitrate kbps quality qp gop compression codec videocodec vcodec video encoder scale",
    "resize rotate rotation mirror color contrast brightness overlay overlays zoom",
    "videokeyframeinterval videoframeskipmode videozfpsmode pal ntsc",
    # sound
    "audio audiocodec mic mute nosound",
    # transport
    "transport transportmode rtsp_transport proto protocol tcp udp unicast multicast srtp",
    "enablesrtp timeout buffer latency delay format fmt container type mode",
    # time
    "starttime endtime start end date duration speed seek loop play play_count",
    # what a script of the camera does, and for which program
    "action cmd lang page user username usr loginuse",
    # databases, whose addresses are shown like those of cameras
    "db sslmode",
)

HARMLESS = frozenset(name for group in _GROUPS for name in group.split())
"""Lower-case names; the value of any other parameter may be a secret."""
