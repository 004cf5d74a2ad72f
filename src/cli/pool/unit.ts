/** The systemd unit that starts what is marked to be autostarted; printed by `pool-autostart --unit`. */
export const UNIT = `[Unit]
Description=Storage pools of spindle
Wants=network-online.target
After=local-fs.target network-online.target iscsid.service
Before=libvirtd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/env spindle pool-start --autostarted

[Install]
WantedBy=multi-user.target
`;
