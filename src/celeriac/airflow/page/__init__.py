"""The page of Celeriac within Airflow's API server: read-only, with Airflow's login and permissions.

a viewer ─► app ─► Airflow's permissions ─► cache ─► sources ─► broker, leases and claims, Airflow's database
         ◄─ templates ◄─ wording ◄──────────────────┘

In:  requests for `/celeriac/`, below Airflow's own address. Out: HTML without scripts from elsewhere.
It talks to no scheduler: all that it shows is also true while none runs.
"""
