"""What a Prefect server is made to look like, as files, and `sync`, which makes it so.

    prefect.yaml      deployments and their schedules
    pools/            work pools (pools.yaml) and their job templates (*.json)
    platform.yaml     global limits, variables, and the blocks that somebody has to make
    automations.yaml  what happens by itself: zombies, notifications, rebuilds
    catalog.yaml      which engines are kept up to date; read by the flow rebuild-catalog
    systemd/          the unit of a worker on a bare GPU box

`trtforge deploy` reads all but the last two. To change one for a site, copy the directory and give
the copy to `--files`.
"""
